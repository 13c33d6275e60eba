package local_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/local"
)

// BenchmarkLoad registers 10,000 services with two checks each from files.
func BenchmarkLoad(b *testing.B) {
	var defs []*definition.Service
	for i := range 10_000 {
		defs = append(defs, &definition.Service{Name: fmt.Sprintf("web-%d", i), Port: i, Checks: []definition.Check{
			{TTL: time.Hour}, {HTTP: "http://127.0.0.1/health", Interval: 10 * time.Second},
		}})
	}
	b.ReportAllocs()
	for b.Loop() {
		s, err := local.New(config(nil))
		if err != nil {
			b.Fatal(err)
		}
		for range 2 { // at start, and a reload that changes nothing
			if err := s.Load(b.Context(), defs, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkUpdateCheck passes results of one of 10,000 checks.
func BenchmarkUpdateCheck(b *testing.B) {
	s, err := local.New(config(nil))
	if err != nil {
		b.Fatal(err)
	}
	for i := range 10_000 {
		id := fmt.Sprint(i)
		if err := s.RegisterCheck(b.Context(), &definition.Check{ID: id, Name: id, TTL: time.Hour}, local.Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.UpdateCheck("5000", "passing", []string{"one", "two"}[i%2])
	}
}

// BenchmarkUpdateTTL has programs report about 10,000 TTL checks in turn, on an agent that keeps them on disk.
func BenchmarkUpdateTTL(b *testing.B) {
	cfg := config(nil)
	cfg.DataDir = b.TempDir()
	s, err := local.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	var defs []*definition.Check
	for i := range 10_000 {
		defs = append(defs, &definition.Check{ID: fmt.Sprint(i), Name: "c", TTL: time.Hour})
	}
	if err := s.Load(b.Context(), nil, defs); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := s.UpdateTTL(b.Context(), fmt.Sprint(i%10_000), "passing", "fine"); err != nil {
			b.Fatal(err)
		}
	}
}
