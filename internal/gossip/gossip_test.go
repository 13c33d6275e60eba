package gossip_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A member is one running pool on its host.
type member struct {
	*gossip.Pool
	t    *testing.T
	host *testkit.Host
	stop func()

	mu     sync.Mutex
	events []string
}

func start(t *testing.T, h *testkit.Host, cfg gossip.Config) *member {
	t.Helper()
	m := &member{t: t, host: h}
	l, err := h.Listen(8301)
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.ListenPacket(8301)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listener, cfg.Packets, cfg.Dial = l, p, h.Dial
	cfg.OnEvent = func(e gossip.Event) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, o := range e.Members {
			m.events = append(m.events, fmt.Sprintf("%d %s", e.Kind, o.Name))
		}
		if e.Kind == gossip.Fired {
			m.events = append(m.events, fmt.Sprintf("fired %s %s", e.Name, e.Payload))
		}
	}
	if m.Pool, err = gossip.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: run: %v", cfg.Name, err)
		}
	})
	t.Cleanup(m.stop)
	<-m.Ready()
	return m
}

func (m *member) saw(event string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Contains(m.events, event)
}

func (m *member) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.events)
}

func (m *member) status(name string) gossip.Status {
	for _, o := range m.Members() {
		if o.Name == name {
			return o.Status
		}
	}
	return gossip.None
}

// pool starts n members that know each other.
func pool(t *testing.T, net *testkit.Network, n int, cfg gossip.Config) []*member {
	t.Helper()
	var ms []*member
	for i := range n {
		cfg.Name = fmt.Sprintf("n%d", i)
		m := start(t, net.Host(fmt.Sprintf("10.0.0.%d", i+1)), cfg)
		if i > 0 {
			if _, err := m.Join([]string{"10.0.0.1:8301"}); err != nil {
				t.Fatal(err)
			}
		}
		ms = append(ms, m)
	}
	time.Sleep(5 * time.Second)
	for _, m := range ms {
		if got := len(m.Members()); got != n {
			t.Fatalf("%s knows %d members, want %d", m.Name(), got, n)
		}
	}
	return ms
}

func TestMembersFailLeaveAndReturn(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(1)
		ms := pool(t, net, 4, gossip.Config{Tags: map[string]string{"role": "node"}})

		ms[3].host.Crash()
		ms[3].stop()
		time.Sleep(30 * time.Second)
		if got := ms[0].status("n3"); got != gossip.Failed || !ms[0].saw("2 n3") {
			t.Errorf("a killed member is %v", got)
		}
		if err := ms[2].Leave(); err != nil {
			t.Fatal(err)
		}
		ms[2].stop()
		time.Sleep(5 * time.Second)
		if got := ms[0].status("n2"); got != gossip.Left || !ms[1].saw("1 n2") {
			t.Errorf("a member that left is %v; another saw %v", got, ms[1].seen())
		}
		if err := ms[0].ForceLeave("n3", true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if got := ms[1].status("n3"); got != gossip.None || !ms[1].saw("4 n3") {
			t.Errorf("a pruned member is %v", got)
		}
		// The same name comes back under another address.
		h := net.Host("10.0.0.77")
		back := start(t, h, gossip.Config{Name: "n3"})
		if _, err := back.Join([]string{"10.0.0.2:8301"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		for _, o := range ms[0].Members() {
			if o.Name == "n3" && (o.Status != gossip.Alive || o.Addr != netip.MustParseAddr("10.0.0.77")) {
				t.Errorf("after the return: %+v", o)
			}
		}
	})
}

func TestPartitionHeals(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(2)
		net.SetAll(testkit.Link{Delay: time.Millisecond, Jitter: time.Millisecond})
		ms := pool(t, net, 5, gossip.Config{})
		net.Partition([]*testkit.Host{ms[3].host, ms[4].host})
		time.Sleep(time.Minute)
		if a, b := ms[0].status("n4"), ms[4].status("n0"); a != gossip.Failed || b != gossip.Failed {
			t.Fatalf("over a partition: %v and %v, want failed", a, b)
		}
		if got := ms[0].status("n1"); got != gossip.Alive {
			t.Errorf("on the same side: %v", got)
		}
		net.Heal()
		time.Sleep(3 * time.Minute)
		for _, m := range ms {
			for _, o := range m.Members() {
				if o.Status != gossip.Alive {
					t.Errorf("%s sees %s %v after healing", m.Name(), o.Name, o.Status)
				}
			}
		}
	})
}

// A member that loses half of its packets may for a moment convince others that one of them failed; the accused hears
// of it and the pool is right again within seconds.
func TestSickMemberFlipsNobodyForLong(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(3)
		net.SetAll(testkit.Link{Delay: time.Millisecond})
		ms := pool(t, net, 6, gossip.Config{})
		for _, m := range ms[1:] {
			net.SetLink(ms[0].host, m.host, testkit.Link{Delay: time.Millisecond, Loss: 0.5})
			net.SetLink(m.host, ms[0].host, testkit.Link{Delay: time.Millisecond, Loss: 0.5})
		}
		wrong := map[string]time.Time{} // since when somebody takes a healthy member for failed
		for end := time.Now().Add(4 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
			for _, m := range ms[1:] {
				for _, o := range ms[1:] {
					who := m.Name() + " of " + o.Name()
					if m.status(o.Name()) == gossip.Alive {
						delete(wrong, who)
						continue
					}
					if wrong[who].IsZero() {
						wrong[who] = time.Now()
					}
					if d := time.Since(wrong[who]); d > 20*time.Second {
						t.Fatalf("for %v the view that %s has is %v", d, who, m.status(o.Name()))
					}
				}
			}
		}
	})
}

func TestUserEventsReachAll(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ms := pool(t, testkit.NewNetwork(4), 3, gossip.Config{})
		if err := ms[1].Fire("deploy", []byte("v2")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		for _, m := range ms {
			if !m.saw("fired deploy v2") {
				t.Errorf("%s did not get the event", m.Name())
			}
		}
		err := ms[0].Fire("big", make([]byte, 600))
		if err == nil || err.Error() != "user event exceeds configured limit of 512 bytes before encoding" {
			t.Errorf("a large event: %v", err)
		}
	})
}

func TestRefusedMembersStayOut(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(5)
		refuse := func(m gossip.Member) error {
			if m.Tags["dc"] != "dc1" {
				return fmt.Errorf("Member '%s' part of wrong datacenter '%s'", m.Name, m.Tags["dc"])
			}
			return nil
		}
		a := start(t, net.Host("10.0.0.1"), gossip.Config{Name: "a", Tags: map[string]string{"dc": "dc1"}, Refuse: refuse})
		b := start(t, net.Host("10.0.0.2"), gossip.Config{Name: "b", Tags: map[string]string{"dc": "dc2"}})
		b.Join([]string{"10.0.0.1:8301"}) // b itself would have a
		time.Sleep(5 * time.Second)
		if got := a.status("b"); got != gossip.None {
			t.Errorf("a knows b as %v", got)
		}
	})
}

func TestEncryption(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(6)
		dir := t.TempDir()
		ring := filepath.Join(dir, "serf", "local.keyring")
		k1, k2 := bytes.Repeat([]byte{1}, 16), bytes.Repeat([]byte{2}, 32)
		a := start(t, net.Host("10.0.0.1"), gossip.Config{Name: "a", Key: k1, KeyringPath: ring})
		b := start(t, net.Host("10.0.0.2"), gossip.Config{Name: "b", Key: k1})
		c := start(t, net.Host("10.0.0.3"), gossip.Config{Name: "c", Key: k2})
		if _, err := b.Join([]string{"10.0.0.1:8301"}); err != nil {
			t.Errorf("same key: %v", err)
		}
		if n, err := c.Join([]string{"10.0.0.1:8301"}); err == nil {
			t.Errorf("another key: joined %d", n)
		}
		if info, err := os.Stat(ring); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("key ring file: %v, %v; want mode 0600", info, err)
		}
		time.Sleep(2 * time.Second)
		const installed = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
		if _, err := a.Keys(gossip.InstallKey, installed, 0); err != nil {
			t.Fatal(err)
		}
		report, err := b.Keys(gossip.ListKeys, "", 0)
		if err != nil || report.Keys[installed] != 2 || report.Nodes != 2 {
			t.Errorf("keys %+v, %v", report, err)
		}
		if keys, err := gossip.ReadKeyring(ring); err != nil || len(keys) != 2 {
			t.Errorf("key ring file holds %d keys, %v; want 2", len(keys), err)
		}
	})
}

func TestKeySize(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		h := testkit.NewNetwork(1).Host("10.0.0.1")
		l, _ := h.Listen(1)
		p, _ := h.ListenPacket(1)
		_, err := gossip.New(gossip.Config{Name: "a", Listener: l, Packets: p, Dial: h.Dial, Key: make([]byte, 15)})
		if !errors.Is(err, gossip.ErrKeySize) {
			t.Errorf("a key of 15 bytes: %v, want %v", err, gossip.ErrKeySize)
		}
	})
}

func TestMembersAreRememberedOverARestart(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(8)
		snap := filepath.Join(t.TempDir(), "serf", "local.snapshot")
		a := start(t, net.Host("10.0.0.1"), gossip.Config{Name: "a"})
		hb := net.Host("10.0.0.2")
		b := start(t, hb, gossip.Config{Name: "b", SnapshotPath: snap})
		if _, err := b.Join([]string{"10.0.0.1:8301"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		b.stop()
		time.Sleep(time.Minute)
		if got := a.status("b"); got != gossip.Failed {
			t.Fatalf("b is %v, want failed", got)
		}
		b = start(t, hb, gossip.Config{Name: "b", SnapshotPath: snap})
		time.Sleep(10 * time.Second)
		if got := a.status("b"); got != gossip.Alive || b.status("a") != gossip.Alive {
			t.Errorf("after the restart b is %v and sees a %v", got, b.status("a"))
		}
	})
}

func FuzzKeyringFile(f *testing.F) {
	f.Add([]byte(`["AQEBAQEBAQEBAQEBAQEBAQ=="]`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`["x"`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "ring")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := gossip.ReadKeyring(path)
		if err == nil && len(keys) == 0 {
			t.Error("no key and no error")
		}
		for _, k := range keys {
			if n := len(k); n != 16 && n != 24 && n != 32 {
				t.Errorf("accepted a key of %d bytes", n)
			}
		}
	})
}
