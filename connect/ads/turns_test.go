package ads_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/ads"
)

// Changes reach so many streams a second, the newest one each; what a stream begins with waits for nothing, and neither
// does what was accepted or asked for.
func TestUpdateRate(t *testing.T) {
	run(t, ads.Config{UpdateRate: 2}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:db=0"), nil)
		var clients []*client
		for i := range 4 {
			c := h.delta(t, "")
			c.subscribe('C')
			c.want(fmt.Sprintf("stream %d begins", i), "C1 +db")
			c.ack('C', 1)
			clients = append(clients, c)
		}
		synctest.Wait()
		told := func() (n int) {
			for _, c := range clients {
				nonce := 0
				if fmt.Sscanf(c.take(), "C%d", &nonce); nonce > 0 {
					c.ack('C', nonce)
					n++
				}
			}
			return n
		}
		time.Sleep(10 * time.Second) // nothing is owed
		h.set(world(t, "c:db=1"), nil)
		if n := told(); n != 1 {
			t.Errorf("%d streams are told at once, want 1", n)
		}
		h.set(world(t, "c:db=2"), nil) // whoever waits is told of this one only
		for second := range 3 {
			time.Sleep(time.Second)
			if n := told(); n > 2 {
				t.Errorf("%d streams are told in second %d", n, second)
			}
		}
		time.Sleep(5 * time.Second)
		told()
		h.server.SetUpdateRate(0)
		h.set(world(t, "c:db=3"), nil)
		if n := told(); n != 4 {
			t.Errorf("without a limit %d streams are told at once, want 4", n)
		}
		for _, c := range clients {
			c.cancel()
		}
	})
}
