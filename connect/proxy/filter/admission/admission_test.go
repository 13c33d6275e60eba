package admission_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/admission"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
)

func conf() *admission.Config {
	return &admission.Config{Window: 10 * time.Second, Aggression: 1, Threshold: 0.95, MaxProbability: 0.8}
}

// share returns which share of requests is refused, by trying random numbers without sending any.
func share(b *filtertest.Bench) float64 {
	n := 0
	for i := range 100 {
		b.Random = uint64(float64(i) / 100 * math.MaxUint64)
		if b.Filter.Request(b.Exchange("GET", "/")) != nil {
			n++
		}
	}
	b.Random = math.MaxUint64
	return float64(n) / 100
}

func TestShareFollowsSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := filtertest.New(t, admission.Type, conf())
		send := func(n, status int) {
			for range n {
				x := b.Exchange("GET", "/")
				b.Random = math.MaxUint64 // never refused
				b.Run(x, func(x *filter.Exchange) { x.Response.Status = status })
			}
		}
		if p := share(b); p != 0 {
			t.Errorf("%v of the first requests", p)
		}
		send(95, 404)
		send(5, 503)
		if p := share(b); p != 0 {
			t.Errorf("%v refused at the threshold", p)
		}
		send(90, 503)
		// 95 of 190: (190 - 95/0.95) / 191.
		if p := share(b); p < 0.46 || p > 0.49 {
			t.Errorf("%v refused when half fails", p)
		}
		time.Sleep(9 * time.Second)
		send(5000, 503)
		if p := share(b); p != 0.8 {
			t.Errorf("%v refused when all fail", p)
		}
		time.Sleep(10 * time.Second)
		if p := share(b); p != 0 {
			t.Errorf("%v refused when the window has passed", p)
		}
	})
}

func TestWhatCounts(t *testing.T) {
	b := filtertest.New(t, admission.Type, conf())
	b.Random = math.MaxUint64
	grpc := []string{"content-type", "application/grpc"}
	call := func(status string, trailers bool) {
		b.Run(b.Exchange("POST", "/s/m", grpc...), func(x *filter.Exchange) {
			if !trailers {
				x.Response.Header.Add("grpc-status", status)
				return
			}
			s := filtertest.Body("x")
			if status != "" {
				s.Tail = filtertest.Trailers("grpc-status", status)
			}
			x.ResponseBody = s
		})
	}
	call("0", true)
	call("5", false)
	call("14", true)
	call("14", false)
	call("", true)
	b.Run(b.Exchange("GET", "/"), func(x *filter.Exchange) { x.Response.Status = 100 }) // and then the host was gone
	if got := b.Counters(); got != "http.test.admission_control.rq_failure 4\nhttp.test.admission_control.rq_success 2\n" {
		t.Error(got)
	}
	b.Random = 0
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != 503 || res.Reply.Details != "denied_by_admission_control" || b.Stats.Value("http.test.admission_control.rq_rejected") != 1 || b.Stats.Value("http.test.admission_control.rq_failure") != 4 {
		t.Errorf("%+v", res)
	}
}

func TestFewRequestsAreNotRefused(t *testing.T) {
	c := conf()
	c.MinRate = 2
	b := filtertest.New(t, admission.Type, c)
	b.Random = math.MaxUint64
	for range 19 {
		b.Run(b.Exchange("GET", "/"), func(x *filter.Exchange) { x.Response.Status = 500 })
	}
	if p := share(b); p != 0 {
		t.Errorf("%v refused", p)
	}
}
