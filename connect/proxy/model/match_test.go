package model_test

import (
	"regexp"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// FuzzRegexMatchesAsAWhole compares matchers with the expression that they stand for.
func FuzzRegexMatchesAsAWhole(f *testing.F) {
	for _, s := range []string{`^spiffe://td/dc/[^/]+/svc/web$`, `a|bc`, `(?i)x-abc`, `.*\.css`, `(a)(b)`, `a$`, `(?m)a$b`, `x\xff`, `$`, ``} {
		f.Add(s, "spiffe://td/dc/dc1/svc/web")
		f.Add(s, "a.css")
		f.Add(s, "X-ABC")
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		m, err := model.NewStringMatch(model.MatchRegex, pattern, false)
		if err != nil || len(pattern) > 200 {
			return
		}
		want := regexp.MustCompile(`\A(?:` + pattern + `)\z`).MatchString(s)
		if got := m.Match(s); got != want {
			t.Errorf("%q matches %q: %v, want %v", pattern, s, got, want)
		}
	})
}
