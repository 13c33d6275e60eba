package gossip_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/testkit"
)

var (
	firstKey  = bytes.Repeat([]byte{1}, 32)
	secondKey = bytes.Repeat([]byte{2}, 32)
)

// fleet is a pool whose members are restarted one by one with other settings.
type fleet struct {
	t       *testing.T
	net     *testkit.Network
	hosts   []*testkit.Host
	members []*member
}

// host is the i-th of the network.
func (f *fleet) host(i int) *testkit.Host {
	for len(f.hosts) <= i {
		f.hosts = append(f.hosts, f.net.Host(address(len(f.hosts))))
	}
	return f.hosts[i]
}

const members = 3

func address(i int) string { return fmt.Sprintf("10.0.0.%d", i+1) }

// roll restarts each member with a configuration, and wants all to know each other alive after every step.
func (f *fleet) roll(what string, cfg func(i int) gossip.Config) {
	f.t.Helper()
	for i := range members {
		if len(f.members) > i {
			f.members[i].stop()
		}
		c := cfg(i)
		c.Name = fmt.Sprintf("n%d", i)
		m := start(f.t, f.host(i), c)
		if len(f.members) > i {
			f.members[i] = m
		} else {
			f.members = append(f.members, m)
		}
		var others []string
		for j := range f.members {
			if j != i {
				others = append(others, address(j)+":8301")
			}
		}
		if len(others) > 0 {
			if _, err := m.Join(others); err != nil {
				f.t.Fatalf("%s: n%d does not join: %v", what, i, err)
			}
		}
		time.Sleep(20 * time.Second)
		f.whole(fmt.Sprintf("%s, n%d restarted", what, i))
	}
}

// whole wants every member to know all others, and a probe to go through between any two of them.
func (f *fleet) whole(what string) {
	f.t.Helper()
	for _, m := range f.members {
		for _, o := range f.members {
			if got := m.status(o.Name()); got != gossip.Alive {
				f.t.Errorf("%s: %s holds %s for %v", what, m.Name(), o.Name(), got)
			}
		}
	}
}

// A pool without encryption gets it by three rolling restarts, and loses it by the same ones backwards, without a member
// that fails for another; afterwards nobody gets in without the key.
func TestEncryptionIsBroughtInByRollingRestarts(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		f := &fleet{t: t, net: testkit.NewNetwork(members + 2)}
		dir := t.TempDir()
		with := func(plainIn, plainOut bool) func(int) gossip.Config {
			return func(i int) gossip.Config {
				return gossip.Config{
					Key: firstKey, PlainIncoming: plainIn, PlainOutgoing: plainOut,
					KeyringPath: filepath.Join(dir, fmt.Sprint(i), "serf", "local.keyring"),
				}
			}
		}
		f.roll("no encryption", func(int) gossip.Config { return gossip.Config{} })
		f.roll("all have the key, none uses it", with(true, true))
		f.roll("all send encrypted", with(true, false))
		f.roll("all demand it", with(false, false))

		stranger := func(name string, cfg gossip.Config) error {
			cfg.Name = name
			m := start(t, f.host(members), cfg)
			defer m.stop()
			n, err := m.Join([]string{address(0) + ":8301"})
			time.Sleep(5 * time.Second)
			if n != 0 {
				t.Errorf("%s reached %d members", name, n)
			}
			if got := len(m.Members()); got != 1 {
				t.Errorf("%s knows %d members", name, got)
			}
			for _, o := range f.members {
				if o.status(name) != gossip.None {
					t.Errorf("%s knows %s", o.Name(), name)
				}
			}
			return err
		}
		if err := stranger("plain", gossip.Config{}); err == nil {
			t.Error("a member without a key joined")
		}
		if err := stranger("other", gossip.Config{Key: secondKey}); err == nil {
			t.Error("a member with another key joined")
		}
		if err := stranger("careless", gossip.Config{Key: secondKey, PlainIncoming: true, PlainOutgoing: true}); err == nil {
			t.Error("a member that sends in plain text joined")
		}
		f.whole("after the strangers")

		f.roll("all accept plain text again", with(true, false))
		f.roll("all send plain text", with(true, true))
		f.roll("no encryption again", func(int) gossip.Config { return gossip.Config{} })
	})
}

// The key changes while all run: the new one is installed, used, and the old one removed. The files have what is in use,
// and win over a configured key that is no longer there.
func TestKeysChangeWhileAllRun(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		f := &fleet{t: t, net: testkit.NewNetwork(members + 1)}
		dir := t.TempDir()
		ring := func(i int) string { return filepath.Join(dir, fmt.Sprint(i), "serf", "local.keyring") }
		cfg := func(i int) gossip.Config { return gossip.Config{Key: firstKey, KeyringPath: ring(i)} }
		f.roll("first key", cfg)
		const second = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI="
		const first = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
		keys := func(op gossip.KeyOp, key string) {
			t.Helper()
			report, err := f.members[1].Keys(op, key, 0)
			if err != nil || report.Nodes != members {
				t.Fatalf("%v: %+v, %v", op, report, err)
			}
			time.Sleep(5 * time.Second)
			f.whole(fmt.Sprint(op))
		}
		keys(gossip.InstallKey, second)
		if _, err := f.members[0].Keys(gossip.RemoveKey, first, 0); err == nil {
			t.Error("the key in use was removed")
		}
		keys(gossip.UseKey, second)
		keys(gossip.RemoveKey, first)
		for i := range members {
			stored, err := gossip.ReadKeyring(ring(i))
			if err != nil || len(stored) != 1 || !slices.Equal(stored[0], secondKey) {
				t.Errorf("file of n%d: %d keys, %v", i, len(stored), err)
			}
			if info, err := os.Stat(ring(i)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("file of n%d: %v, %v", i, info, err)
			}
		}
		f.roll("restarts with the first key configured", cfg)
		if f.members[0].PrimaryKey() != second {
			t.Error("the configured key won over the file")
		}
		late := start(t, f.host(members), gossip.Config{Name: "late", Key: firstKey})
		if n, err := late.Join([]string{address(0) + ":8301"}); err == nil {
			t.Errorf("a member with the removed key joined %d", n)
		}
	})
}

// A member may ask to be forgotten sooner than others.
func TestMembersSayHowLongToRememberThem(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		net := testkit.NewNetwork(3)
		a := start(t, net.Host("10.0.0.1"), gossip.Config{Name: "a"})
		b := start(t, net.Host("10.0.0.2"), gossip.Config{Name: "b", OwnReconnectTimeout: time.Minute})
		c := start(t, net.Host("10.0.0.3"), gossip.Config{Name: "c", Protocol: 3, Tags: map[string]string{"vsn": "2"}})
		for _, m := range []*member{b, c} {
			if _, err := m.Join([]string{"10.0.0.1:8301"}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(5 * time.Second)
		for _, m := range a.Members() {
			if want := map[string]string{"a": "", "b": "", "c": "3"}[m.Name]; m.Tags["vsn"] != want {
				t.Errorf("%s tells version %q, want %q", m.Name, m.Tags["vsn"], want)
			}
			if want := map[string]uint8{"a": 4, "b": 4, "c": 5}[m.Name]; m.DelegateCur != want {
				t.Errorf("%s speaks version %d, want %d", m.Name, m.DelegateCur, want)
			}
		}
		b.stop()
		c.stop()
		time.Sleep(10 * time.Minute)
		if got := a.status("b"); got != gossip.None {
			t.Errorf("b, which asked for a minute, is %v", got)
		}
		if got := a.status("c"); got != gossip.Failed {
			t.Errorf("c, which asked for nothing, is %v", got)
		}
	})
}
