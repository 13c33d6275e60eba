package proxy_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/testkit"
)

func TestListenersDrainGracefully(t *testing.T) {
	for _, stay := range []bool{false, true} {
		testkit.Bubble(t, func(t *testing.T) {
			h := testkit.NewNetwork(1).Host("10.0.0.1")
			b, err := decode.New(decode.Options{}).Bootstrap("x.json", []byte(`{"static_resources":{
				"listeners":[`+fmt.Sprintf(listen, "in", 9000, "app")+`],
				"clusters":[{"name":"app","type":"STATIC","connect_timeout":"1s","load_assignment":`+fmt.Sprintf(endpoint, "app", 80)+`}]}}`))
			if err != nil {
				t.Fatal(err)
			}
			p, err := proxy.New(proxy.Config{
				Bootstrap: b, ShutdownTime: 10 * time.Second,
				Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
					return h.Listen(a.Port)
				},
				Dial: func(ctx context.Context, _, a string) (net.Conn, error) { return h.Dial(ctx, a) },
			})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- p.Run(ctx) }()
			accepts := func() bool {
				synctest.Wait()
				c, err := h.Dial(t.Context(), "10.0.0.1:9000")
				if err == nil {
					c.Close()
				}
				return err == nil
			}
			if !accepts() {
				t.Fatal("the listener is not open")
			}
			p.DrainListeners(false, true, stay)
			p.DrainListeners(false, true, stay) // changes nothing
			if p.Ready() {
				t.Error("the proxy is ready while it drains")
			}
			time.Sleep(9 * time.Second)
			if !accepts() {
				t.Error("the listener is closed before the drain time is over")
			}
			time.Sleep(2 * time.Second)
			if got := accepts(); got != stay {
				t.Errorf("after the drain time it accepts: %v, want %v", got, stay)
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
