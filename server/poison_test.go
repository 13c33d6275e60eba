package server_test

import (
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/fsm"
)

// A log with entries that nothing can be made of takes no server down, however often it starts (spec/threats.md, class 9).
func TestThreat09PoisonInTheLogStopsNoServer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 90, 1, server.Config{})
		o := c.nodes[0]
		if err := o.put(t.Context(), "before", "x"); err != nil {
			t.Fatal(err)
		}
		o.stop()

		r := rand.New(rand.NewPCG(9, 9))
		entries := [][]byte{nil, {0xff}, []byte("not an entry"), {0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
		for kind := fsm.Register; kind <= fsm.SVIDKeys; kind++ {
			for _, data := range []string{"\xf6", "\xa0", "\x80", "x", "\xa1\x61k\xff", "\xbf", "\xa1eEntry\xf6", "\xa1dNode\x9f\xff"} {
				entry, err := fsm.Encode([]fsm.Command{{Kind: kind, Req: cbor.RawMessage(data)}})
				if err != nil {
					t.Fatal(err)
				}
				entries = append(entries, entry)
				if cut := r.IntN(len(entry)); cut > 0 {
					entries = append(entries, entry[:cut])
				}
			}
		}
		disk := o.disk.Open()
		last, err := disk.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		var log raft.Log
		if err := disk.GetLog(last, &log); err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			last++
			if err := disk.StoreLog(&raft.Log{Index: last, Term: log.Term, Type: raft.LogCommand, Data: entry}); err != nil {
				t.Fatal(err)
			}
		}

		for _, key := range []string{"once", "twice"} {
			o.start()
			c.leader()
			if err := o.put(t.Context(), key, "y"); err != nil {
				t.Fatal(err)
			}
			if got, err := o.get(t.Context(), "before", read.Consistent); got != "x" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
			if applied, err := strconv.ParseUint(o.Stats()["raft"]["applied_index"], 10, 64); err != nil || applied <= last {
				t.Errorf("applied up to %d of %d, %v", applied, last, err)
			}
			o.crash()
		}
	})
}
