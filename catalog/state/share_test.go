package state_test

import (
	"bytes"
	"reflect"
	"testing"
	"unsafe"

	"github.com/sarnmesh/sarn/catalog/state"
)

// The instances of a service have equal parts once, also after a restore, and those of one that change leave the others
// as they are.
func TestEqualPartsAreShared(t *testing.T) {
	s := newStore(t)
	for i := range 3 {
		s.register(*registration("web", i))
	}
	odd := registration("web", 3)
	odd.Service.Tags, odd.Service.Meta = []string{}, map[string]string{}
	s.register(*odd)
	var snapshot bytes.Buffer
	if err := s.View().Dump(&snapshot); err != nil {
		t.Fatal(err)
	}
	restored := state.New()
	if err := restored.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]*state.Store{"written": s.Store, "restored": restored} {
		_, all := store.View().Instances("web", false)
		first := all[0].Service
		for _, i := range all[1:3] {
			got := i.Service
			if reflect.ValueOf(got.Meta).Pointer() != reflect.ValueOf(first.Meta).Pointer() || &got.Tags[0] != &first.Tags[0] ||
				got.Weights != first.Weights || unsafe.StringData(got.Service) != unsafe.StringData(first.Service) {
				t.Errorf("%s: %s has parts of its own", name, got.ID)
			}
		}
		if got := all[3].Service; len(got.Tags) != 0 || len(got.Meta) != 0 {
			t.Errorf("%s: %s has parts of another: %v %v", name, got.ID, got.Tags, got.Meta)
		}
	}
	if _, all := s.View().Instances("web", false); all[3].Service.Tags == nil || all[3].Service.Meta == nil {
		t.Error("what was empty is nil")
	}

	changed := registration("web", 0)
	changed.Service.Meta = map[string]string{"version": "2"}
	s.register(*changed)
	_, all := s.View().Instances("web", false)
	if all[0].Service.Meta["version"] != "2" || all[1].Service.Meta["version"] != "1" {
		t.Errorf("after a change of the first the meta are %v and %v", all[0].Service.Meta, all[1].Service.Meta)
	}
}
