package feed_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// instance makes one of its own, with a status.
func instance(n int, status string) *catalog.Instance {
	node := fmt.Sprintf("node-%d", n)
	return &catalog.Instance{
		Node:    &catalog.Node{Node: node, Address: "10.0.0.1", Meta: map[string]string{"rack": fmt.Sprint(n % 3)}},
		Service: &catalog.Service{ID: "web", Service: "web", Port: 80 + n, Weights: catalog.DefaultWeights()},
		Checks:  []*catalog.Check{{Node: node, CheckID: "c", Status: status, ServiceID: "web"}},
	}
}

func begin(t testing.TB, index uint64, list ...*catalog.Instance) (*feed.State, []byte) {
	t.Helper()
	s, event, err := feed.Begin(index, false, list)
	if err != nil {
		t.Fatal(err)
	}
	return s, event
}

// normal is an instance in which lists that are empty and those that are not there look alike.
func normal(i *catalog.Instance) *catalog.Instance {
	data, err := rpc.Marshal(i)
	if err != nil {
		panic(err)
	}
	n := new(catalog.Instance)
	if err := rpc.Unmarshal(data, n); err != nil {
		panic(err)
	}
	return n
}

// equal compares what an agent has with what the server has.
func equal(t *testing.T, got, want *feed.State) {
	t.Helper()
	if got.Version() != want.Version() || got.Filtered != want.Filtered {
		t.Fatalf("version %+v, filtered %v; want %+v, %v", got.Version(), got.Filtered, want.Version(), want.Filtered)
	}
	if len(got.Instances) != len(want.Instances) {
		t.Fatalf("%d instances, want %d", len(got.Instances), len(want.Instances))
	}
	for i, x := range want.Instances {
		if got.Instances[i] != x && !reflect.DeepEqual(normal(got.Instances[i]), normal(x)) {
			t.Fatalf("instance %d is %+v, want %+v", i, got.Instances[i], x)
		}
	}
}

// Whatever becomes of a list, who follows the events has the same, in the same order, and each event has no more than what
// is new.
func TestEventsLeadToTheSameState(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		next := 0
		fresh := func() *catalog.Instance {
			next++
			return instance(next, []string{catalog.Passing, catalog.Critical}[r.IntN(2)])
		}
		var list []*catalog.Instance
		for range r.IntN(20) {
			list = append(list, fresh())
		}
		server, event := begin(t, 1, list...)
		agent, err := (*feed.State)(nil).Follow(event)
		if err != nil {
			t.Fatal(err)
		}
		for index := uint64(2); index < 40; index++ {
			list = append([]*catalog.Instance(nil), list...)
			for range r.IntN(4) {
				at := r.IntN(len(list) + 1)
				switch op := r.IntN(4); {
				case op == 0 || len(list) == 0:
					list = append(list[:at:at], append([]*catalog.Instance{fresh()}, list[at:]...)...)
				case at == len(list):
				case op == 1:
					list = append(list[:at:at], list[at+1:]...)
				case op == 2:
					list[at] = fresh()
				default:
					other := r.IntN(len(list))
					list[at], list[other] = list[other], list[at]
				}
			}
			if r.IntN(30) == 0 {
				list = nil
			}
			server, event, err = server.Next(index, r.IntN(10) == 0, list)
			if err != nil {
				t.Fatal(err)
			}
			if agent, err = agent.Follow(event); err != nil {
				t.Fatalf("seed %d, index %d: %v", seed, index, err)
			}
			equal(t, agent, server)
			snapshot, err := server.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			whole, err := agent.Follow(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, whole, server)
		}
	}
}

func TestAChangeOfOneInstanceIsSmall(t *testing.T) {
	var list []*catalog.Instance
	for i := range 500 {
		list = append(list, instance(i, catalog.Passing))
	}
	s, whole := begin(t, 1, list...)
	list = append([]*catalog.Instance(nil), list...)
	list[250] = instance(250, catalog.Critical)
	_, event, err := s.Next(2, false, list)
	if err != nil {
		t.Fatal(err)
	}
	if len(event) > len(whole)/300 {
		t.Errorf("the event has %d bytes, the state %d", len(event), len(whole))
	}
}

// States with the same content have the same digest, whoever made them, and others another.
func TestDigestsTellContentApart(t *testing.T) {
	a, b, c := instance(1, catalog.Passing), instance(2, catalog.Passing), instance(2, catalog.Critical)
	again, _ := begin(t, 7, instance(1, catalog.Passing), instance(2, catalog.Passing))
	s, _ := begin(t, 7, a, b)
	if s.Version() != again.Version() {
		t.Errorf("equal states have %+v and %+v", s.Version(), again.Version())
	}
	filtered, _, _ := feed.Begin(7, true, []*catalog.Instance{a, b})
	swapped, _ := begin(t, 7, b, a)
	other, _ := begin(t, 7, a, c)
	less, _ := begin(t, 7, a)
	none, _ := begin(t, 7)
	later, _ := begin(t, 8, a, b)
	seen := map[uint64]bool{s.Version().Digest: true}
	for _, x := range []*feed.State{filtered, swapped, other, less, none, later} {
		if seen[x.Version().Digest] {
			t.Errorf("two states have the digest %x", x.Version().Digest)
		}
		seen[x.Version().Digest] = true
	}
}

func TestAnEventIsFollowedFromItsOwnStateOnly(t *testing.T) {
	s, _ := begin(t, 1, instance(1, catalog.Passing))
	other, _ := begin(t, 1, instance(2, catalog.Passing))
	_, event, err := s.Next(2, false, []*catalog.Instance{instance(3, catalog.Passing)})
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]*feed.State{"another": other, "none": nil} {
		if _, err := from.Follow(event); !errors.Is(err, feed.ErrOther) {
			t.Errorf("from %s: %v, want %v", name, err, feed.ErrOther)
		}
	}
	_, whole := begin(t, 1, instance(1, catalog.Passing))
	at := bytes.Index(whole, []byte("10.0.0.1"))
	whole[at]++
	if _, err := s.Follow(whole); !errors.Is(err, feed.ErrDigest) {
		t.Errorf("with other content: %v, want %v", err, feed.ErrDigest)
	}
}

// An event of which any bit has changed is not followed, or leads where it did.
func TestNoChangedEventIsFollowed(t *testing.T) {
	s, whole := begin(t, 1, instance(1, catalog.Passing), instance(2, catalog.Passing))
	_, next, err := s.Next(300, false, []*catalog.Instance{s.Instances[1], instance(3, catalog.Passing)})
	if err != nil {
		t.Fatal(err)
	}
	_, same, err := s.Next(2, false, s.Instances) // the index alone
	if err != nil {
		t.Fatal(err)
	}
	for name, event := range map[string][]byte{"whole": whole, "next": next, "same": same} {
		want, err := s.Follow(event)
		if err != nil {
			t.Fatal(err)
		}
		refused := 0
		for bit := range 8 * len(event) {
			changed := bytes.Clone(event)
			changed[bit/8] ^= 1 << (bit % 8)
			got, err := s.Follow(changed)
			if err != nil {
				refused++
			} else if got.Version() != want.Version() || got.Filtered != want.Filtered {
				t.Errorf("%s: with bit %d changed it leads to %+v, want %+v", name, bit, got.Version(), want.Version())
			}
		}
		if refused < 8*len(event)-8 {
			t.Errorf("%s: %d of %d were refused", name, refused, 8*len(event))
		}
	}
}

func TestFramesCrossTheWire(t *testing.T) {
	frames := []feed.Frame{
		{Kind: feed.Event, ID: 1, Last: true, KnownLeader: true, Contact: 17 * time.Millisecond, Event: []byte("event")},
		{Kind: feed.Event, ID: 300, Event: bytes.Repeat([]byte("x"), 200<<10)},
		{Kind: feed.Current, ID: 1 << 40, KnownLeader: true},
		{Kind: feed.Refused, ID: 2, Status: 403, Text: "ACL not found"},
		{Kind: feed.Goodbye},
	}
	var wire []byte
	for i := range frames {
		wire = append(frames[i].AppendHead(wire), frames[i].Event...)
	}
	r := bufio.NewReader(bytes.NewReader(wire))
	for i := range frames {
		got, err := feed.ReadFrame(r)
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if diff := cmp.Diff(frames[i], got); diff != "" {
			t.Errorf("frame %d (-want +got):\n%s", i, diff)
		}
	}
	if _, err := feed.ReadFrame(r); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
	for cut := 1; cut < 20; cut++ {
		if _, err := feed.ReadFrame(bufio.NewReader(bytes.NewReader(wire[:cut]))); err == nil && cut < 12 {
			t.Errorf("a frame of %d bytes was read", cut)
		}
	}

	want := feed.Ask{
		ID: 9, Subject: feed.Subject{Service: "web", Connect: true}, Token: "secret", Have: feed.Version{Index: 4, Digest: 1 << 63}, Floor: 12,
	}
	var asks bytes.Buffer
	if err := feed.WriteAsk(&asks, &want); err != nil {
		t.Fatal(err)
	}
	got, err := feed.ReadAsk(bufio.NewReader(&asks))
	if err != nil || *got != want {
		t.Errorf("ask %+v, %v; want %+v", got, err, want)
	}
	asks.Write([]byte{0xff, 0xff, 0xff, 0x7f})
	if _, err := feed.ReadAsk(bufio.NewReader(&asks)); err == nil || err == io.EOF {
		t.Errorf("an ask that is too long: %v", err)
	}
}

func TestSubjectsAreWhatAFeedCanAnswer(t *testing.T) {
	covered := catalog.InstancesRequest{Service: "web", Tags: []string{"a"}, PassingOnly: true}
	covered.Filter = "Service.Port == 80"
	if s, ok := feed.Of(&covered); !ok || s != (feed.Subject{Service: "web"}) {
		t.Errorf("subject %+v, %v", s, ok)
	}
	for _, change := range []func(*catalog.InstancesRequest){
		func(r *catalog.InstancesRequest) { r.Peer = "east" },
		func(r *catalog.InstancesRequest) { r.MergeCentralConfig = true },
		func(r *catalog.InstancesRequest) { r.CatalogOnly = true },
		func(r *catalog.InstancesRequest) { r.Near = "node" },
		func(r *catalog.InstancesRequest) { r.Service = strings.Repeat("x", feed.MaxAsk) },
	} {
		req := covered
		change(&req)
		if _, ok := feed.Of(&req); ok {
			t.Errorf("%+v is covered", req)
		}
	}
}

// What is followed is what was named, or an error.
func FuzzFollow(f *testing.F) {
	a, b := instance(1, catalog.Passing), instance(2, catalog.Critical)
	s, whole := begin(f, 5, a, b)
	_, event, err := s.Next(6, true, []*catalog.Instance{b, instance(3, catalog.Passing)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(event)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := s.Follow(data)
		if err != nil {
			return
		}
		again, err := got.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (*feed.State)(nil).Follow(again); err != nil && !errors.Is(err, feed.ErrDigest) { // encodings need not be canonical
			t.Fatalf("the state cannot be told to others: %v", err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	for _, x := range []feed.Frame{{Kind: feed.Event, ID: 1, Event: []byte("e")}, {Kind: feed.Refused, ID: 2, Status: 403, Text: "t"}, {Kind: feed.Goodbye}} {
		f.Add(append(x.AppendHead(nil), x.Event...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := feed.ReadFrame(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		again, err := feed.ReadFrame(bufio.NewReader(bytes.NewReader(append(x.AppendHead(nil), x.Event...))))
		if err != nil || !cmp.Equal(x, again) {
			t.Fatalf("%+v is read again as %+v, %v", x, again, err)
		}
	})
}

func FuzzReadAsk(f *testing.F) {
	var b bytes.Buffer
	feed.WriteAsk(&b, &feed.Ask{ID: 1, Subject: feed.Subject{Service: "web"}, Token: "t"})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := feed.ReadAsk(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := feed.WriteAsk(&b, a); err != nil {
			t.Fatal(err)
		}
		if again, err := feed.ReadAsk(bufio.NewReader(&b)); err != nil || *again != *a {
			t.Fatalf("%+v is read again as %+v, %v", a, again, err)
		}
	})
}

func BenchmarkChangeOfOneOf500(b *testing.B) {
	var list []*catalog.Instance
	for i := range 500 {
		list = append(list, instance(i, catalog.Passing))
	}
	s, _ := begin(b, 1, list...)
	changed := append([]*catalog.Instance(nil), list...)
	changed[250] = instance(250, catalog.Critical)
	b.ReportAllocs()
	var event []byte
	for b.Loop() {
		_, event, _ = s.Next(2, false, changed)
	}
	b.ReportMetric(float64(len(event)), "bytes")
}

func BenchmarkFollowOneOf500(b *testing.B) {
	var list []*catalog.Instance
	for i := range 500 {
		list = append(list, instance(i, catalog.Passing))
	}
	s, _ := begin(b, 1, list...)
	changed := append([]*catalog.Instance(nil), list...)
	changed[250] = instance(250, catalog.Critical)
	_, event, _ := s.Next(2, false, changed)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Follow(event); err != nil {
			b.Fatal(err)
		}
	}
}
