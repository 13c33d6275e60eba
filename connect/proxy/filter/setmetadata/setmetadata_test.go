package setmetadata_test

import (
	"fmt"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/setmetadata"
)

func TestValuesAreMerged(t *testing.T) {
	old := map[string]any{"a": 1.0}
	b := filtertest.New(t, setmetadata.Type, &setmetadata.Config{Entries: []setmetadata.Entry{
		{Namespace: "n", Values: map[string]any{"deep": map[string]any{"b": 2.0}, "s": "new"}},
		{Namespace: "n", Values: map[string]any{"s": "kept out"}, Keep: true},
		{Namespace: "m", Values: map[string]any{"s": "first"}, Keep: true},
	}})
	x := b.Exchange("GET", "/")
	x.SetMetadata("n", "deep", old)
	x.SetMetadata("n", "s", "old")
	b.Run(x, nil)
	if got := fmt.Sprint(x.Entry.HTTP.Metadata["n"], x.Entry.HTTP.Metadata["m"]); got != "map[deep:map[a:1 b:2] s:new] map[s:first]" || len(old) != 1 {
		t.Error(got, old)
	}
	if got := b.Counters(); got != "http.test.set_metadata.overwrite_denied 1\n" {
		t.Error(got)
	}
}
