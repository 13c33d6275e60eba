package local_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/local"
)

func TestChecksOfTheNodeShareCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		c.delay = 10 * time.Millisecond
		cfg := config(c)
		cfg.Check.Dial = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			theirs.Close()
			return ours, nil
		}
		s, err := local.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var defs []*definition.Check
		for i := range 10_000 {
			d := &definition.Check{ID: fmt.Sprint("c", i), Name: "c", TCP: "x:1", Interval: 10 * time.Second}
			if i%2 == 1 {
				d.Token = "other"
			}
			defs = append(defs, d)
		}
		if err := s.Load(t.Context(), nil, defs); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(15 * time.Second) // every check has been run
		calls := len(c.take())
		passing := 0
		c.mu.Lock()
		for id, got := range c.checks {
			if got.Status == "passing" && strings.HasPrefix(id, "c") {
				passing++
			}
		}
		wrong := 0
		for i := range 10_000 {
			if want := []string{"", "other"}[i%2]; c.tokens["check "+fmt.Sprint("c", i)] != want {
				wrong++
			}
		}
		c.mu.Unlock()
		if passing != 10_000 || wrong > 0 || calls > 1000 {
			t.Errorf("%d checks are passing, %d were sent with another's token, in %d calls; want all, none and a tenth as many calls at most", passing, wrong, calls)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
