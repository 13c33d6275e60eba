package event_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog/event"
)

const id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"

func TestEncodeDecode(t *testing.T) {
	want := &event.Event{ID: id, Name: "a/b", Payload: []byte("x"), NodeFilter: "^n", ServiceFilter: "web", TagFilter: "v1", Version: 1}
	name, payload, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if name != "consul:event:a/b" {
		t.Errorf("gossip name %q", name)
	}
	got, ok := event.Decode(name, payload, 7)
	want.LTime = 7
	if !ok || !cmp.Equal(got, want) {
		t.Errorf("decoded %v: %s", ok, cmp.Diff(want, got))
	}
	if _, ok := event.Decode("other", payload, 1); ok {
		t.Error("decoded a message with another prefix")
	}
}

func TestFourHundredBytesFit(t *testing.T) {
	e := &event.Event{ID: id, Name: "deploy", Payload: make([]byte, 400), Version: 1}
	name, payload, err := e.Encode()
	if err != nil || len(name)+len(payload) > 512 {
		t.Errorf("%d bytes, %v", len(name)+len(payload), err)
	}
}

func TestConcerns(t *testing.T) {
	services := map[string][]string{"web": {"v1", "blue"}, "db": nil}
	tests := []struct {
		name               string
		node, service, tag string
		want               bool
	}{
		{name: "no filter", want: true},
		{name: "node matches anywhere", node: "od", want: true},
		{name: "other node", node: "^x"},
		{name: "service", service: "web|cache", want: true},
		{name: "absent service", service: "^cache"},
		{name: "tag of that service", service: "web", tag: "blue", want: true},
		{name: "tag of another service", service: "db", tag: "blue"},
		{name: "broken filter", node: "("},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &event.Event{NodeFilter: tt.node, ServiceFilter: tt.service, TagFilter: tt.tag}
			if got := e.Concerns("node1", services); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	if err := (&event.Event{TagFilter: "x"}).Check(); err != event.ErrTagWithoutService {
		t.Errorf("tag alone: %v", err)
	}
	if err := (&event.Event{NodeFilter: "("}).Check(); err == nil || err.Error()[:20] != "Invalid node filter:" {
		t.Errorf("bad expression: %v", err)
	}
}

func TestIndexCombinesTheHalves(t *testing.T) {
	if got, want := (&event.Event{ID: id}).Index(), uint64(0x6ba7b8109dad11d1^0x80b400c04fd430c8); got != want {
		t.Errorf("got %d, want %d", got, want)
	}
}

func TestLogKeepsTheLast256(t *testing.T) {
	var l event.Log
	_, changed := l.List("")
	for i := range 300 {
		l.Add(&event.Event{Name: fmt.Sprint(i % 2), LTime: uint64(i)})
	}
	select {
	case <-changed:
	default:
		t.Error("a waiter was not woken")
	}
	all, _ := l.List("")
	odd, _ := l.List("1")
	if len(all) != 256 || all[0].LTime != 44 || all[255].LTime != 299 || len(odd) != 128 {
		t.Errorf("%d events from %d to %d, %d odd ones", len(all), all[0].LTime, all[len(all)-1].LTime, len(odd))
	}
}

func FuzzDecode(f *testing.F) {
	_, payload, _ := (&event.Event{ID: id, Payload: []byte("x")}).Encode()
	f.Add(payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		e, ok := event.Decode(event.Prefix+"n", payload, 1)
		if !ok {
			return
		}
		e.Concerns("n", nil)
		name, again, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if e2, ok := event.Decode(name, again, 1); !ok || !cmp.Equal(e, e2) {
			t.Errorf("not stable: %s", cmp.Diff(e, e2))
		}
	})
}
