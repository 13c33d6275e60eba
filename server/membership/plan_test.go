package membership

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog/operator"
)

func TestVersionsAreOrdered(t *testing.T) {
	ordered := []string{
		"", "0.9", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1",
		"1.2", "1.10", "1.21.0", "2", "99999999999999999999.0", "blue",
	}
	for i, x := range ordered {
		for j, y := range ordered {
			if got, want := compareVersions(x, y), min(1, max(-1, i-j)); got != want {
				t.Errorf("compare %q with %q: %d, want %d", x, y, got, want)
			}
		}
	}
	for _, same := range [][2]string{{"1.2", "1.2.0"}, {"v1.2.0", "1.2.0"}, {"1.2.0+a", "1.2.0+b"}, {"01.2", "1.2"}} {
		if compareVersions(same[0], same[1]) != 0 {
			t.Errorf("%q and %q differ", same[0], same[1])
		}
	}
}

func FuzzVersionsAreOrdered(f *testing.F) {
	f.Add("1.2.0-rc.1", "1.2", "v1..2+x")
	f.Fuzz(func(t *testing.T, x, y, z string) {
		xy, yz, xz := compareVersions(x, y), compareVersions(y, z), compareVersions(x, z)
		if xy != -compareVersions(y, x) || compareVersions(x, x) != 0 || xy <= 0 && yz <= 0 && xz > 0 {
			t.Errorf("no order of %q, %q and %q: %d %d %d", x, y, z, xy, yz, xz)
		}
	})
}

// A simulated cluster applies plans without time passing.
type simulated struct {
	servers map[string]*operator.ServerState
	leader  string
}

func (s *simulated) voters() (list []string) {
	for _, id := range sortedKeys(s.servers) {
		if s.servers[id].Voter {
			list = append(list, id)
		}
	}
	return list
}

// step looks and does what autopilot would; it reports whether anything changed.
func (s *simulated) step(conf operator.AutopilotConfig) (operator.State, plan, bool) {
	st := operator.State{Servers: map[string]*operator.ServerState{}, Leader: s.leader, Voters: s.voters()}
	for id, v := range s.servers {
		c := *v
		c.Leader = id == s.leader
		st.Servers[id] = &c
	}
	p := arrange(&st, conf, func(v *operator.ServerState) bool { return v.Healthy })
	promoted, well := false, 0
	for id := range p.vote {
		if v := s.servers[id]; !v.Voter {
			promoted = true
			v.Voter = v.Healthy
		} else if v.Healthy {
			well++
		}
	}
	if promoted || well < len(p.vote)/2+1 {
		return st, p, promoted
	}
	for _, id := range s.voters() {
		if !p.vote[id] && id != s.leader {
			s.servers[id].Voter = false
			promoted = true
		}
	}
	if !promoted && !p.vote[s.leader] {
		for _, id := range slices.Sorted(maps.Keys(p.vote)) {
			if s.servers[id].Healthy {
				s.leader, promoted = id, true
			}
		}
	}
	return st, p, promoted
}

// Whatever the servers, plans come to an end, at which there are voters, most of them well, none of them a read replica.
func TestPlansComeToAnEnd(t *testing.T) {
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := &simulated{servers: map[string]*operator.ServerState{}}
		conf := operator.DefaultAutopilot()
		if r.IntN(2) == 0 {
			conf.RedundancyZoneTag = "zone"
		}
		if r.IntN(2) == 0 {
			conf.UpgradeVersionTag = "version"
		}
		conf.DisableUpgradeMigration = r.IntN(4) == 0
		for i := range 1 + r.IntN(9) {
			id := fmt.Sprintf("s%d", i)
			v := &operator.ServerState{ServerHealth: operator.ServerHealth{ID: id, Name: id, Healthy: r.IntN(6) > 0, Voter: r.IntN(2) == 0}}
			v.ReadReplica = i > 0 && r.IntN(8) == 0
			v.RedundancyZone = []string{"", "a", "b", "c"}[r.IntN(4)]
			if conf.RedundancyZoneTag == "" {
				v.RedundancyZone = ""
			}
			v.UpgradeVersion = []string{"1.0", "1.1", "1.1", ""}[r.IntN(4)]
			s.servers[id] = v
		}
		first := s.servers["s0"]
		first.Voter, first.Healthy, s.leader = true, true, "s0"
		healthy := func() (n int) {
			for _, id := range s.voters() {
				if s.servers[id].Healthy {
					n++
				}
			}
			return n
		}
		if healthy() < len(s.voters())/2+1 {
			continue // it could not have a leader
		}
		begin := describeServers(s)
		steps := 0
		for ; ; steps++ {
			st, p, changed := s.step(conf)
			if n := len(s.voters()); n == 0 || healthy() < n/2+1 || !s.servers[s.leader].Voter {
				t.Fatalf("seed %d: no majority after step %d:\n%s\nfrom\n%s", seed, steps, describeServers(s), begin)
			}
			if !changed {
				if wellOf(s, p) < len(p.vote)/2+1 {
					break // it waits for servers to get well
				}
				for _, id := range s.voters() {
					if s.servers[id].ReadReplica {
						t.Fatalf("seed %d: the replica %s votes:\n%s", seed, id, describeServers(s))
					}
				}
				if u := st.Upgrade; u != nil && (u.Status == operator.UpgradeDemoting || u.Status == operator.UpgradeLeaderTransfer) {
					t.Fatalf("seed %d: %s for ever:\n%s", seed, u.Status, describeServers(s))
				}
				break
			}
			if steps > 40 {
				t.Fatalf("seed %d: no end:\n%s\nfrom\n%s", seed, describeServers(s), begin)
			}
		}
	}
}

func wellOf(s *simulated, p plan) (n int) {
	for id := range p.vote {
		if s.servers[id].Healthy && s.servers[id].Voter {
			n++
		}
	}
	return n
}

func describeServers(s *simulated) string {
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(s.servers)) {
		v := s.servers[id]
		fmt.Fprintf(&b, "  %s voter=%v healthy=%v replica=%v zone=%q version=%q leader=%v\n", id, v.Voter, v.Healthy, v.ReadReplica, v.RedundancyZone, v.UpgradeVersion, id == s.leader)
	}
	return b.String()
}
