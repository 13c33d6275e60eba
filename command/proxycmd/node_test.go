package proxycmd

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/node"
)

func TestNodeFlagsAreChecked(t *testing.T) {
	tests := []struct {
		args string
		want string
	}{
		{"-node -proxy-id a", "-node can't be used with -bootstrap, -proxy-id"},
		{"-proxy-id a -node-list f", "may only be specified with -node"},
		{"-proxy-id a -max-proxy-connections 5", "may only be specified with -node"},
		{"-node -max-connections -1", "can't be negative"},
		{"-node -node-list /no/such -admin-socket none", "list of proxies: stat /no/such"},
	}
	for _, tt := range tests {
		ui := cli.NewMockUi()
		if code := New(ui).Run(strings.Fields(tt.args)); code != 1 || !strings.Contains(ui.ErrorWriter.String(), tt.want) {
			t.Errorf("%q: code %d, says %q, want %q", tt.args, code, ui.ErrorWriter, tt.want)
		}
	}
}

// told collects what it was told, one "ID token" for each proxy.
type told chan string

func (c told) set(list []node.Member) {
	var all []string
	for _, m := range list {
		all = append(all, strings.TrimSpace(m.ID+" "+m.Token))
	}
	c <- strings.Join(all, ",")
}

func (c told) want(t *testing.T, want string) {
	t.Helper()
	got := "nothing"
	select {
	case got = <-c:
	default:
	}
	if got != want {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestListIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		write(`{"Proxies":[{"ID":"a","Token":"x"},{"ID":"b"}]}`)
		ctx, stop := context.WithCancel(t.Context())
		c, done := make(told, 10), make(chan error)
		go func() { done <- followList(ctx, path, c.set, hclog.NewNullLogger()) }()
		next := func(want string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			c.want(t, want)
		}
		next("a x,b")
		next("nothing")
		write(`{"Proxies":[{"ID":"a","Token":"x"}]}`)
		next("a x")
		write(`{"Proxies":[{"ID":`)
		next("nothing")
		os.Remove(path)
		next("nothing")
		write(`{}`)
		next("")
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	write(`{"Proxies":[{"Token":"secret"}`)
	if err := followList(t.Context(), path, nil, hclog.NewNullLogger()); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("a bad list at the start: %v", err)
	}
	write(`{"Proxies":[{"Token":"secret"}]}`)
	if err := followList(t.Context(), path, nil, hclog.NewNullLogger()); err == nil {
		t.Error("a proxy without ID is accepted")
	}
}

func TestSidecarsOfTheAgentAreFollowed(t *testing.T) {
	proxy := map[string]any{"Kind": "connect-proxy", "Proxy": map[string]any{}}
	answers := map[string]any{"/v1/agent/services": map[string]any{"b": proxy, "a": proxy, "web": map[string]any{}, "edge": map[string]any{"Kind": "ingress-gateway"}}}
	for _, tt := range []struct {
		name   string
		answer any
		want   []string
	}{
		{"sidecars only", answers["/v1/agent/services"], []string{"a", "b"}},
		{"none", map[string]any{}, []string{}},
		{"not allowed", http.StatusForbidden, nil},
	} {
		a := fake(t, map[string]any{"/v1/agent/services": tt.answer})
		wait := time.Minute // nothing comes later
		if tt.want == nil {
			wait = 200 * time.Millisecond
		}
		ctx, stop := context.WithTimeout(t.Context(), wait)
		var got []string
		err := a.followSidecars(ctx, func(list []node.Member) {
			got = []string{}
			for _, m := range list {
				got = append(got, m.ID)
			}
			stop()
		})
		stop()
		if err != nil && !errors.Is(err, context.Canceled) || !slices.Equal(got, tt.want) || (got == nil) != (tt.want == nil) {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestConnectionsFollowOpenFiles(t *testing.T) {
	if n := allConnections(7); n != 7 {
		t.Errorf("asked for 7, got %d", n)
	}
	if n := allConnections(0); n < 1 || uint64(n) > max(openFiles()/2, fallbackConnections) {
		t.Errorf("%d connections of %d files", n, openFiles())
	}
}
