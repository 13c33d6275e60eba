package config

import (
	"os"
	"strings"
	"testing"
)

// The list of keys that the tests go through has every key there is.
func TestEveryKeyIsListed(t *testing.T) {
	data, err := os.ReadFile("testdata/keys.tsv")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		key, _, _ := strings.Cut(line, "\t")
		listed[key] = true
	}
	known := map[string]bool{}
	walk(root, "", func(key string, _ *schema) {
		known[key] = true
		if !listed[key] {
			t.Errorf("testdata/keys.tsv has no value for %s", key)
		}
	})
	for key := range listed {
		if !known[key] {
			t.Errorf("testdata/keys.tsv names %s, and there is no such key", key)
		}
	}
}
