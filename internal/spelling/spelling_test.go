package spelling

import "testing"

func TestNearest(t *testing.T) {
	names := []string{"server", "services", "node_name", "kv", "members"}
	tests := []struct{ name, word, want string }{
		{"a letter missing", "servr", "server"},
		{"letters swapped", "memebrs", "members"},
		{"the name itself", "kv", "kv"},
		{"nothing near", "zzzzzz", ""},
		{"short words need to be close", "xy", ""},
		{"equals go by order", "serves", "server"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Nearest(tt.word, names); got != tt.want {
				t.Errorf("Nearest(%q) = %q, want %q", tt.word, got, tt.want)
			}
		})
	}
}
