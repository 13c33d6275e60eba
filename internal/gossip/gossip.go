// Package gossip keeps the membership of a pool of agents: who is there, who failed, who left, with a few tags each;
// it spreads small user events among them and estimates round-trip times. It wraps serf and memberlist, and gives them
// a network that comes from outside.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"github.com/hashicorp/serf/coordinate"
	"github.com/hashicorp/serf/serf"
)

// A Status is what is known about a member. The numbers are those of spec/state.md section 12.
type Status int

const (
	None Status = iota
	Alive
	Leaving
	Left
	Failed
)

// String returns the lower-case name.
func (s Status) String() string {
	switch s {
	case Alive:
		return "alive"
	case Leaving:
		return "leaving"
	case Left:
		return "left"
	case Failed:
		return "failed"
	}
	return "none"
}

// A Member is one agent of the pool. Its tags are shared and must not be changed.
type Member struct {
	Name   string
	Addr   netip.Addr
	Port   uint16 // of gossip
	Tags   map[string]string
	Status Status

	ProtocolMin, ProtocolMax, ProtocolCur uint8
	DelegateMin, DelegateMax, DelegateCur uint8
}

// An EventKind says what happened.
type EventKind int

const (
	// Joined members are alive.
	Joined EventKind = iota
	// Departed members have left, by themselves or forced.
	Departed
	// Lost members do not answer.
	Lost
	// Updated members have changed tags or address.
	Updated
	// Reaped members are forgotten.
	Reaped
	// Fired is a user event.
	Fired
)

// An Event tells of a change in the pool, or carries a user event.
type Event struct {
	Kind    EventKind
	Members []Member // of all kinds but Fired
	// Of Fired:
	Name    string
	Payload []byte
	LTime   uint64
}

// Timing holds the knobs of the protocol. A zero field takes the default of the pool's kind.
type Timing struct {
	GossipNodes    int
	GossipInterval time.Duration
	ProbeInterval  time.Duration
	ProbeTimeout   time.Duration
	SuspicionMult  int
	RetransmitMult int
}

// A Config describes this member and its pool. A zero field takes its default.
type Config struct {
	// Name is unique in the pool.
	Name string
	Tags map[string]string
	// WAN chooses timing for distant members.
	WAN    bool
	Timing Timing

	// Listener and Packets are where others reach this member, under the same address. The pool closes them.
	Listener net.Listener
	Packets  net.PacketConn
	// Dial opens a stream to another member.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Advertise is the address told to others; default that of Listener.
	Advertise netip.AddrPort
	// Allowed are the networks members may have addresses in; empty allows all.
	Allowed []net.IPNet

	// Key encrypts the pool: 16, 24 or 32 bytes, none for plain text.
	Key []byte
	// KeyringPath is the file that keeps the keys, mode 0600; where it exists it wins over Key. Empty keeps them in
	// memory.
	KeyringPath string
	// PlainIncoming and PlainOutgoing allow unencrypted traffic although there is a key, for a rolling change.
	PlainIncoming, PlainOutgoing bool

	// SnapshotPath is the file that remembers members over a restart; empty for none.
	SnapshotPath string
	// RejoinAfterLeave makes a start use that memory even when this member had left.
	RejoinAfterLeave bool
	// ReconnectTimeout is how long failed members are remembered; default 72h. Members that left are remembered as long.
	// A member may ask the others for another time for itself: OwnReconnectTimeout; 0 does not.
	ReconnectTimeout, OwnReconnectTimeout time.Duration
	// Protocol is the version told to others, 2 or 3; default 2. What is spoken is the same.
	Protocol int
	// LeavePropagation is how long a leaving member stays to answer; default 3s.
	LeavePropagation time.Duration
	// NoCoordinates turns the estimates of round-trip times off.
	NoCoordinates bool
	// EventSizeLimit bounds name and payload of a user event; default 512.
	EventSizeLimit int

	// Refuse decides about members met in a join or by gossip; an error keeps them out. It must not call the pool.
	Refuse func(Member) error
	// OnEvent is called with every event, one at a time and in order. It should return soon.
	OnEvent func(Event)

	Logger hclog.Logger // default discards
}

// ErrKeySize reports a gossip key of a wrong length.
var ErrKeySize = errors.New("key size must be 16, 24 or 32 bytes")

// A Pool is this agent's place among the members. Make one with New.
type Pool struct {
	cfg     Config
	keyring *memberlist.Keyring // nil without encryption
	ready   chan struct{}

	mu   sync.Mutex
	serf *serf.Serf // nil before Run
	tr   *transport // nil before Run
	tags map[string]string
}

// New prepares a pool: it checks the configuration and reads or creates the key ring. Nothing else happens until Run.
func New(cfg Config) (*Pool, error) {
	if cfg.Name == "" || cfg.Listener == nil || cfg.Packets == nil || cfg.Dial == nil {
		return nil, errors.New("gossip: name, listener, packet connection and dialer are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.ReconnectTimeout == 0 {
		cfg.ReconnectTimeout = 72 * time.Hour
	}
	if cfg.LeavePropagation == 0 {
		cfg.LeavePropagation = 3 * time.Second
	}
	if cfg.EventSizeLimit == 0 {
		cfg.EventSizeLimit = 512
	}
	if !cfg.Advertise.IsValid() {
		a, err := netip.ParseAddrPort(cfg.Listener.Addr().String())
		if err != nil {
			return nil, fmt.Errorf("gossip: advertised address: %w", err)
		}
		cfg.Advertise = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	p := &Pool{cfg: cfg, ready: make(chan struct{}), tags: maps.Clone(cfg.Tags)}
	if p.tags == nil {
		p.tags = map[string]string{}
	}
	if cfg.Protocol > 2 && p.tags[versionTag] != "" {
		p.tags[versionTag] = strconv.Itoa(cfg.Protocol)
	}
	if d := cfg.OwnReconnectTimeout; d > 0 {
		p.tags[reconnectTag] = d.String()
	}
	if cfg.SnapshotPath != "" {
		if err := os.MkdirAll(filepath.Dir(cfg.SnapshotPath), 0o700); err != nil {
			return nil, fmt.Errorf("gossip: snapshot folder: %w", err)
		}
	}
	if err := p.openKeyring(); err != nil {
		return nil, err
	}
	return p, nil
}

// Run takes part in the pool until ctx ends, without leaving: to the others this member then fails. Call Leave first
// for a graceful end.
func (p *Pool) Run(ctx context.Context) error {
	events := make(chan serf.Event, 2048)
	logger := log.New(levelWriter{p.cfg.Logger}, "", 0)
	tr := newTransport(p.cfg)
	conf := p.serfConfig(tr, events, logger)

	s, err := serf.Create(conf)
	if err != nil {
		tr.Shutdown()
		return fmt.Errorf("gossip: %w", err)
	}
	p.mu.Lock()
	p.serf, p.tr = s, tr
	p.mu.Unlock()
	if !maps.Equal(p.currentTags(), conf.Tags) { // changed while serf started
		if err := s.SetTags(p.currentTags()); err != nil {
			p.cfg.Logger.Warn("cannot publish tags", "error", err)
		}
	}
	close(p.ready)

	announced := make(chan struct{})
	go func() {
		defer close(announced)
		p.announce(ctx, s)
	}()
	defer func() { <-announced }()
	for {
		select {
		case e := <-events:
			p.deliver(e)
		case <-ctx.Done():
			return p.shutdown(s, events)
		}
	}
}

// announcements are when, after the start, this member tells another one of itself again. The first time may have been
// in vain: while the pool still holds an earlier life of this member, at another address, for alive, it refuses the new
// one.
var announcements = []time.Duration{3 * time.Second, 6 * time.Second, 10 * time.Second, 15 * time.Second, 25 * time.Second}

func (p *Pool) announce(ctx context.Context, s *serf.Serf) {
	began := time.Now()
	for _, after := range announcements {
		timer := time.NewTimer(time.Until(began.Add(after)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		var others []string
		for _, m := range p.Members() {
			if m.Status == Alive && m.Name != p.cfg.Name {
				others = append(others, netip.AddrPortFrom(m.Addr, m.Port).String())
			}
		}
		if len(others) == 0 || s.State() != serf.SerfAlive {
			continue
		}
		if _, err := s.Memberlist().Join([]string{others[rand.IntN(len(others))]}); err != nil {
			p.cfg.Logger.Debug("cannot tell another member of this one again", "error", err)
		}
	}
}

// shutdown stops serf, taking its last events so that it cannot block on them.
func (p *Pool) shutdown(s *serf.Serf, events <-chan serf.Event) error {
	done := make(chan error, 1)
	go func() { done <- s.Shutdown() }()
	for {
		select {
		case <-events:
		case err := <-done:
			return err
		}
	}
}

func (p *Pool) serfConfig(tr memberlist.Transport, events chan<- serf.Event, logger *log.Logger) *serf.Config {
	ml := memberlist.DefaultLANConfig()
	if p.cfg.WAN {
		ml = memberlist.DefaultWANConfig()
	}
	t := p.cfg.Timing
	set(&ml.GossipNodes, t.GossipNodes)
	set(&ml.GossipInterval, t.GossipInterval)
	set(&ml.ProbeInterval, t.ProbeInterval)
	set(&ml.ProbeTimeout, t.ProbeTimeout)
	set(&ml.SuspicionMult, t.SuspicionMult)
	set(&ml.RetransmitMult, t.RetransmitMult)
	ml.Transport = tr
	ml.BindAddr, ml.BindPort = p.cfg.Advertise.Addr().String(), int(p.cfg.Advertise.Port())
	ml.AdvertiseAddr, ml.AdvertisePort = ml.BindAddr, ml.BindPort
	ml.Keyring = p.keyring
	ml.GossipVerifyIncoming = !p.cfg.PlainIncoming
	ml.GossipVerifyOutgoing = !p.cfg.PlainOutgoing
	ml.CIDRsAllowed = p.cfg.Allowed
	// A member that failed may come back under another address at once: its name is protected by Refuse.
	ml.DeadNodeReclaimTime = time.Nanosecond
	ml.LogOutput, ml.Logger = nil, logger

	conf := serf.DefaultConfig()
	conf.NodeName = p.cfg.Name
	conf.Tags = p.currentTags()
	conf.EventCh = events
	conf.MemberlistConfig = ml
	conf.SnapshotPath = p.cfg.SnapshotPath
	conf.RejoinAfterLeave = p.cfg.RejoinAfterLeave
	conf.ReconnectInterval = 10 * time.Second // rather than 30s: after a partition the two sides should soon be one
	conf.ReconnectTimeout = p.cfg.ReconnectTimeout
	conf.ReconnectTimeoutOverride = wishes{}
	if p.cfg.Protocol > 2 {
		conf.ProtocolVersion = serf.ProtocolVersionMax
	}
	conf.TombstoneTimeout = p.cfg.ReconnectTimeout
	conf.LeavePropagateDelay = p.cfg.LeavePropagation
	conf.DisableCoordinates = p.cfg.NoCoordinates
	conf.UserEventSizeLimit = p.cfg.EventSizeLimit
	conf.EnableNameConflictResolution = false // it would stop an agent on a misconfiguration elsewhere
	conf.MinQueueDepth = 4096
	conf.QueueDepthWarning = 1_000_000
	conf.LogOutput, conf.Logger = nil, logger
	if p.keyring != nil && p.cfg.KeyringPath != "" {
		conf.KeyringFile = p.cfg.KeyringPath
	}
	if p.cfg.Refuse != nil {
		conf.Merge = merge(p.cfg.Refuse)
	}
	return conf
}

// Tags that the pool itself sets and reads.
const (
	versionTag   = "vsn"
	reconnectTag = "rc_tm" // a duration, how long the member is to be remembered
)

// wishes are what members ask for themselves.
type wishes struct{}

// ReconnectTimeout implements serf.ReconnectTimeoutOverrider.
func (wishes) ReconnectTimeout(m *serf.Member, timeout time.Duration) time.Duration {
	if d, err := time.ParseDuration(m.Tags[reconnectTag]); err == nil && d > 0 {
		return d
	}
	return timeout
}

func set[T comparable](dst *T, v T) {
	var zero T
	if v != zero {
		*dst = v
	}
}

// merge asks about each member met.
type merge func(Member) error

func (m merge) NotifyMerge(members []*serf.Member) error {
	for _, o := range members {
		if err := m(member(*o)); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pool) deliver(e serf.Event) {
	if p.cfg.OnEvent == nil {
		return
	}
	switch e := e.(type) {
	case serf.UserEvent:
		p.cfg.OnEvent(Event{Kind: Fired, Name: e.Name, Payload: e.Payload, LTime: uint64(e.LTime)})
	case serf.MemberEvent:
		out := Event{Members: make([]Member, len(e.Members))}
		switch e.Type {
		case serf.EventMemberJoin:
			out.Kind = Joined
		case serf.EventMemberLeave:
			out.Kind = Departed
		case serf.EventMemberFailed:
			out.Kind = Lost
		case serf.EventMemberUpdate:
			out.Kind = Updated
		case serf.EventMemberReap:
			out.Kind = Reaped
		}
		for i, m := range e.Members {
			out.Members[i] = member(m)
		}
		p.cfg.OnEvent(out)
	}
}

func member(m serf.Member) Member {
	addr, _ := netip.AddrFromSlice(m.Addr)
	return Member{
		Name: m.Name, Addr: addr.Unmap(), Port: m.Port, Tags: m.Tags, Status: Status(m.Status),
		ProtocolMin: m.ProtocolMin, ProtocolMax: m.ProtocolMax, ProtocolCur: m.ProtocolCur,
		DelegateMin: m.DelegateMin, DelegateMax: m.DelegateMax, DelegateCur: m.DelegateCur,
	}
}

// running returns the started serf, nil before Run has started it.
func (p *Pool) running() *serf.Serf {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.serf
}

// Ready is closed when Run has joined the network and the other methods have an effect.
func (p *Pool) Ready() <-chan struct{} { return p.ready }

// ErrNotRunning is returned by calls made before Run has started the pool.
var ErrNotRunning = errors.New("gossip is not running")

// Name returns this member's name.
func (p *Pool) Name() string { return p.cfg.Name }

// Members returns every member known, this one included, ordered by name; nil before Run.
func (p *Pool) Members() []Member {
	s := p.running()
	if s == nil {
		return nil
	}
	all := s.Members()
	out := make([]Member, len(all))
	for i, m := range all {
		out[i] = member(m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Local returns this member.
func (p *Pool) Local() Member {
	if s := p.running(); s != nil {
		return member(s.LocalMember())
	}
	return Member{Name: p.cfg.Name, Addr: p.cfg.Advertise.Addr(), Port: p.cfg.Advertise.Port(), Tags: p.currentTags()}
}

// Join contacts the given addresses ("host" or "host:port") and returns how many answered; the error is nil when one
// did.
func (p *Pool) Join(addresses []string) (int, error) {
	s := p.running()
	if s == nil {
		return 0, ErrNotRunning
	}
	n, err := s.Join(addresses, true)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// Leave tells the others that this member leaves, and waits until they had time to hear it. Run goes on.
func (p *Pool) Leave() error {
	s := p.running()
	if s == nil {
		return ErrNotRunning
	}
	p.mu.Lock()
	tr := p.tr
	p.mu.Unlock()
	tr.leaving.Store(true)
	err := s.Leave()
	switch s.State() {
	case serf.SerfAlive:
		tr.leaving.Store(false)
	case serf.SerfLeft:
		// Two others may have exchanged their state while only one of them had heard of it: see transport.leaving. It is
		// said once more, for a later time.
		if again := s.RemoveFailedNode(p.cfg.Name); again != nil {
			p.cfg.Logger.Debug("leaving was not told again", "error", again)
		}
	}
	return err
}

// ForceLeave makes the pool treat a failed member as one that left; with prune it is forgotten at once.
func (p *Pool) ForceLeave(name string, prune bool) error {
	s := p.running()
	switch {
	case s == nil:
		return ErrNotRunning
	case prune:
		return s.RemoveFailedNodePrune(name)
	}
	return s.RemoveFailedNode(name)
}

// Fire spreads a user event to every member, this one included.
func (p *Pool) Fire(name string, payload []byte) error {
	s := p.running()
	if s == nil {
		return ErrNotRunning
	}
	return s.UserEvent(name, payload, false)
}

func (p *Pool) currentTags() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.tags)
}

// SetTags changes tags and tells the pool; an empty value removes one.
func (p *Pool) SetTags(changes map[string]string) error {
	p.mu.Lock()
	for k, v := range changes {
		if v == "" {
			delete(p.tags, k)
		} else {
			p.tags[k] = v
		}
	}
	s, tags := p.serf, maps.Clone(p.tags)
	p.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.SetTags(tags)
}

// A Coordinate is a position in the space of round-trip times, in seconds.
type Coordinate struct {
	Vec        []float64
	Error      float64
	Adjustment float64
	Height     float64
}

func position(c *coordinate.Coordinate) *Coordinate {
	return &Coordinate{Vec: slices.Clone(c.Vec), Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
}

// Coordinate returns this member's position, nil when there is none.
func (p *Pool) Coordinate() *Coordinate {
	s := p.running()
	if s == nil || p.cfg.NoCoordinates {
		return nil
	}
	c, err := s.GetCoordinate()
	if err != nil {
		return nil
	}
	return position(c)
}

// CoordinateOf returns what is known of another member's position, nil if nothing.
func (p *Pool) CoordinateOf(name string) *Coordinate {
	s := p.running()
	if s == nil || p.cfg.NoCoordinates {
		return nil
	}
	if c, ok := s.GetCachedCoordinate(name); ok {
		return position(c)
	}
	return nil
}

// Stats returns figures for operators.
func (p *Pool) Stats() map[string]string {
	if s := p.running(); s != nil {
		return s.Stats()
	}
	return map[string]string{}
}

// levelWriter passes on the lines of serf and memberlist, which begin with "[LEVEL] part: ".
type levelWriter struct{ log hclog.Logger }

func (w levelWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level := hclog.Info
	if rest, ok := strings.CutPrefix(line, "["); ok {
		if name, text, ok := strings.Cut(rest, "] "); ok {
			line = text
			switch name {
			case "ERR", "ERROR":
				// What serf calls an error it retries; nothing for an operator to do.
				level = hclog.Warn
			case "WARN":
				level = hclog.Warn
			case "DEBUG":
				level = hclog.Debug
			}
		}
	}
	w.log.Log(level, line)
	return len(b), nil
}

var _ io.Writer = levelWriter{}
