package membership

import (
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/internal/gossip"
)

// A plan says which servers are to vote, by ID.
type plan struct{ vote map[string]bool }

// describe fills in what a server is for.
func describe(s *operator.ServerState, member gossip.Server, conf operator.AutopilotConfig, meta map[string]string) {
	s.ReadReplica = member.ReadReplica
	if conf.RedundancyZoneTag != "" {
		s.RedundancyZone = meta[conf.RedundancyZoneTag]
	}
	if conf.UpgradeVersionTag != "" {
		s.UpgradeVersion = meta[conf.UpgradeVersionTag]
	} else {
		s.UpgradeVersion, _, _ = strings.Cut(s.Version, ":")
	}
}

// arrange decides which servers are to vote and completes the state by what follows from that. Ready tells of a healthy
// server whether it may be given a vote.
func arrange(st *operator.State, conf operator.AutopilotConfig, ready func(*operator.ServerState) bool) plan {
	var servers []*operator.ServerState // that can vote
	for _, id := range sortedKeys(st.Servers) {
		s := st.Servers[id]
		if s.ReadReplica {
			st.ReadReplicas = append(st.ReadReplicas, id)
			continue
		}
		servers = append(servers, s)
	}
	b := &ballot{zones: conf.RedundancyZoneTag != "", ready: ready}
	vote := b.migrate(st, servers, conf)

	st.OptimisticFailureTolerance = st.FailureTolerance
	for _, s := range st.Servers {
		switch {
		case s.ReadReplica:
			s.Type = operator.TypeReadReplica
		case !b.zones || s.RedundancyZone == "":
			s.Type = operator.TypeVoter
		case b.extra[s.ID]:
			s.Type = operator.TypeZoneExtraVoter
		case vote[s.ID]:
			s.Type = operator.TypeZoneVoter
		default:
			s.Type = operator.TypeZoneStandby
		}
		if b.zones && !s.ReadReplica && !s.Voter && s.Healthy {
			st.OptimisticFailureTolerance++
		}
	}
	if b.zones {
		st.RedundancyZones = zonesOf(servers)
	}
	return plan{vote}
}

// zonesOf lists the servers of each zone; those that tell none are in none.
func zonesOf(servers []*operator.ServerState) map[string]*operator.Zone {
	zones := map[string]*operator.Zone{}
	healthy := map[string]int{}
	for _, s := range servers {
		if s.RedundancyZone == "" {
			continue
		}
		z := zones[s.RedundancyZone]
		if z == nil {
			z = &operator.Zone{Servers: []string{}, Voters: []string{}}
			zones[s.RedundancyZone] = z
		}
		z.Servers = append(z.Servers, s.ID)
		if s.Voter {
			z.Voters = append(z.Voters, s.ID)
		}
		if s.Healthy {
			healthy[s.RedundancyZone]++
		}
		z.FailureTolerance = max(0, healthy[s.RedundancyZone]-1)
	}
	return zones
}

// A ballot finds who is to vote.
type ballot struct {
	zones bool
	ready func(*operator.ServerState) bool
	extra map[string]bool // by ID: who votes though another server of its zone does
}

// choose returns those of some servers that are to vote: all that do or can; with zones one of each, and one more where
// that makes their number odd.
func (b *ballot) choose(servers []*operator.ServerState) map[string]bool {
	vote := map[string]bool{}
	b.extra = map[string]bool{}
	// rank orders servers by how good a voter they are; 0 for those that cannot be one.
	rank := func(s *operator.ServerState) int {
		switch {
		case s.Voter && s.Leader:
			return 4
		case s.Voter && s.Healthy:
			return 3
		case b.ready(s):
			return 2
		case s.Voter:
			return 1
		}
		return 0
	}
	if !b.zones {
		for _, s := range servers {
			if rank(s) > 0 {
				vote[s.ID] = true
			}
		}
		return vote
	}
	best := map[string]*operator.ServerState{}
	var spare []*operator.ServerState
	for _, s := range servers {
		zone := "zone " + s.RedundancyZone
		if s.RedundancyZone == "" {
			zone = "server " + s.ID // on its own
		}
		other := best[zone]
		switch {
		case rank(s) == 0:
		case other == nil:
			best[zone] = s
		case rank(s) > rank(other):
			best[zone] = s
			spare = append(spare, other)
		default:
			spare = append(spare, s)
		}
	}
	for _, s := range best {
		vote[s.ID] = true
	}
	if len(vote)%2 == 0 {
		slices.SortStableFunc(spare, func(x, y *operator.ServerState) int { return rank(y) - rank(x) })
		if len(spare) > 0 && rank(spare[0]) > 1 {
			vote[spare[0].ID], b.extra[spare[0].ID] = true, true
		}
	}
	return vote
}

// migrate is choose, but for servers of several versions: while there are fewer of the newest than of the others, the
// others go on to vote; then the newest take over.
func (b *ballot) migrate(st *operator.State, servers []*operator.ServerState, conf operator.AutopilotConfig) map[string]bool {
	target := ""
	for _, s := range servers {
		if compareVersions(s.UpgradeVersion, target) > 0 {
			target = s.UpgradeVersion
		}
	}
	isTarget := func(s *operator.ServerState) bool { return compareVersions(s.UpgradeVersion, target) == 0 }
	var newest, others []*operator.ServerState
	allVote := true
	for _, s := range servers {
		if isTarget(s) {
			newest = append(newest, s)
		} else {
			others = append(others, s)
		}
		allVote = allVote && s.Voter
	}
	if conf.UpgradeVersionTag == "" && len(others) == 0 {
		return b.choose(servers)
	}
	up := versionsOf(servers, st, isTarget)
	up.TargetVersion = target
	st.Upgrade = up
	switch {
	case conf.DisableUpgradeMigration:
		up.Status = operator.UpgradeDisabled
		return b.choose(servers)
	case len(others) == 0:
		up.Status = operator.UpgradeIdle
		return b.choose(servers)
	}

	need := 0 // servers of the newest version
	if b.zones {
		need = len(b.choose(others))
	} else {
		for _, s := range others {
			if s.Voter || s.Healthy {
				need++
			}
		}
	}
	vote := b.choose(newest)
	if len(vote) < need || !b.covers(vote, newest, others) {
		up.Status = operator.UpgradeAwaitNewVoters
		for _, s := range newest {
			if s.Voter {
				others = append(others, s)
			}
		}
		return b.choose(others)
	}
	// Where all vote and their number is odd, or small, a cluster's servers are being upgraded one by one in their places:
	// taking votes would leave it with fewer voters than it is meant to have.
	if !b.zones && allVote && (len(servers)%2 == 1 || len(newest) < 3) {
		up.Status = operator.UpgradeAwaitRemoval
		return b.choose(servers)
	}
	// Without zones all of the newest are to vote before the first of the others does not.
	promoting := !b.zones && slices.ContainsFunc(newest, func(s *operator.ServerState) bool { return !s.Voter })
	for _, s := range newest {
		promoting = promoting || vote[s.ID] && !s.Voter
	}
	left := 0
	for _, s := range others {
		if s.Voter && !s.Leader {
			left++
		}
	}
	switch {
	case promoting:
		up.Status = operator.UpgradePromoting
		for _, s := range others {
			if s.Voter {
				vote[s.ID] = true
			}
		}
	case left > 0:
		up.Status = operator.UpgradeDemoting
	case st.Servers[st.Leader] != nil && !isTarget(st.Servers[st.Leader]):
		up.Status = operator.UpgradeLeaderTransfer
	default:
		up.Status = operator.UpgradeAwaitRemoval
	}
	return vote
}

// covers reports whether those who would vote are in every zone in which there are others.
func (b *ballot) covers(vote map[string]bool, newest, others []*operator.ServerState) bool {
	in := map[string]bool{"": true}
	for _, s := range newest {
		in[s.RedundancyZone] = in[s.RedundancyZone] || vote[s.ID]
	}
	return !b.zones || !slices.ContainsFunc(others, func(s *operator.ServerState) bool { return !in[s.RedundancyZone] })
}

// versionsOf lists servers by version and vote.
func versionsOf(servers []*operator.ServerState, st *operator.State, isTarget func(*operator.ServerState) bool) *operator.Upgrade {
	up := &operator.Upgrade{}
	for _, id := range st.ReadReplicas {
		list := &up.OtherVersionReadReplicas
		if isTarget(st.Servers[id]) {
			list = &up.TargetVersionReadReplicas
		}
		*list = append(*list, id)
	}
	for _, s := range servers {
		enter(&up.Versions, s, isTarget(s))
		if s.RedundancyZone == "" {
			continue
		}
		if up.RedundancyZones == nil {
			up.RedundancyZones = map[string]*operator.Versions{}
		}
		if up.RedundancyZones[s.RedundancyZone] == nil {
			up.RedundancyZones[s.RedundancyZone] = &operator.Versions{}
		}
		enter(up.RedundancyZones[s.RedundancyZone], s, isTarget(s))
	}
	return up
}

func enter(v *operator.Versions, s *operator.ServerState, target bool) {
	list := &v.OtherVersionNonVoters
	switch {
	case target && s.Voter:
		list = &v.TargetVersionVoters
	case target:
		list = &v.TargetVersionNonVoters
	case s.Voter:
		list = &v.OtherVersionVoters
	}
	*list = append(*list, s.ID)
}
