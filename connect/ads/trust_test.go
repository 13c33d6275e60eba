package ads_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/xds"
)

// trusting returns resources in which a bundle is trusted.
func trusting(t *testing.T, bundle, words string) *xds.Resources {
	t.Helper()
	r := world(t, words)
	r.Bundle = bundle
	return r
}

// wantTrust checks who trusts a bundle: how many, and what the others trust.
func (h *harness) wantTrust(t *testing.T, what, bundle string, trusting int, others ...string) {
	t.Helper()
	synctest.Wait()
	streams, left, _ := h.server.Trust(bundle)
	var got []string
	n := 0
	for _, o := range streams {
		if o.Bundle == bundle {
			n++
			continue
		}
		got = append(got, o.Proxy+" trusts "+o.Bundle+" "+o.Refused)
	}
	for _, id := range left {
		got = append(got, id+" has left")
	}
	if n != trusting || strings.Join(got, ", ") != strings.Join(others, ", ") {
		t.Errorf("%s: %d trust %s, others: %q; want %d, %q", what, n, bundle, got, trusting, others)
	}
}

func TestTrustIsWhatAClientHasAcceptedAllOf(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(trusting(t, "old", "c:db=1 e:db=1 l:in=1"), nil)
		c := h.delta(t, "")
		c.subscribe('C')
		c.subscribe('E', "db")
		c.subscribe('L')
		c.take()
		c.ack('C', 1)
		c.ack('E', 2)
		c.want("listeners", "L3 +in")
		time.Sleep(2 * time.Second)
		h.wantTrust(t, "the listener is not accepted", "old", 0, "web-sidecar-proxy trusts  ")
		_, _, news := h.server.Trust("old")
		c.ack('L', 3)
		<-news
		h.wantTrust(t, "everything is accepted", "old", 1)

		// A new bundle changes the cluster and the listener; the endpoints go out again with the cluster.
		h.set(trusting(t, "new", "c:db=2 e:db=1 l:in=2"), nil)
		c.want("the cluster", "C4 +db, E5 +db")
		h.wantTrust(t, "nothing of it is accepted", "new", 0, "web-sidecar-proxy trusts old ")
		c.ack('C', 4)
		c.ack('E', 5)
		c.want("the listener", "L6 +in")
		c.nack('L', 6)
		h.wantTrust(t, "the listener is refused", "new", 0, "web-sidecar-proxy trusts old bad L")
		h.set(trusting(t, "new", "c:db=2 e:db=1 l:in=3"), nil)
		c.want("another listener", "L7 +in")
		c.ack('L', 7)
		h.wantTrust(t, "another listener is accepted", "new", 1)
		// Endpoints that change do not count.
		h.set(trusting(t, "newer", "c:db=2 e:db=2 l:in=3"), nil)
		c.want("endpoints", "E8 +db")
		h.wantTrust(t, "endpoints on their way", "newer", 1)

		// A client that comes back has a second to tell what it has.
		c.cancel()
		h.wantTrust(t, "gone", "newer", 0, "web-sidecar-proxy has left")
		time.Sleep(ads.BackTime)
		h.wantTrust(t, "gone for good", "newer", 0)
		again := h.delta(t, "")
		again.subscribe('C')
		again.subscribe('L')
		again.take()
		again.ack('C', 1)
		again.take()
		again.ack('L', 2)
		h.wantTrust(t, "just back", "newer", 0, "web-sidecar-proxy trusts  ")
		time.Sleep(3 * time.Second)
		again.cancel()
	})
}

func TestTrustOfClientsThatSaySoAfterASecond(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		r := trusting(t, "new", "c:db=1 l:in=1")
		h.set(r, nil)
		c := h.delta(t, "")
		for _, typ := range []byte{'C', 'L'} {
			have := map[string]string{}
			for name, x := range r.Of(types[typ]) {
				have[name] = x.Version
			}
			c.send(&discoveryv3.DeltaDiscoveryRequest{
				Node: &corev3.Node{Id: "web-sidecar-proxy"}, TypeUrl: types[typ].URL(), InitialResourceVersions: have,
			})
		}
		c.take()
		c.ack('C', 1)
		c.ack('L', 2)
		h.wantTrust(t, "it has everything, and may have more to tell", "new", 0, "web-sidecar-proxy trusts  ")
		time.Sleep(time.Second)
		h.wantTrust(t, "a second later", "new", 1)
		c.cancel()
	})
}

func TestTrustInStateOfTheWorld(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(trusting(t, "old", "c:a=1 e:a=1 l:in=1"), nil)
		c := h.sotw(t)
		c.subscribe('C')
		c.want("clusters", "C a")
		c.subscribe('E', "a")
		c.want("endpoints", "E a")
		c.subscribe('L')
		c.ack('C')
		c.ack('E')
		c.want("listeners", "L in")
		time.Sleep(2 * time.Second)
		h.wantTrust(t, "the listener is not accepted", "old", 0, "web-sidecar-proxy trusts  ")
		c.ack('L')
		h.wantTrust(t, "everything is accepted", "old", 1)
		h.set(trusting(t, "new", "c:a=1 e:a=1 l:in=2"), nil)
		c.want("another listener", "L in")
		c.nack('L')
		h.wantTrust(t, "the listener is refused", "new", 0, "web-sidecar-proxy trusts old bad")
	})
}
