package intro_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/connect/intro"
)

func token() *intro.JoinToken {
	t := &intro.JoinToken{Server: true, Datacenter: "dc1", Domain: "consul", Addresses: []string{"10.0.0.1:8300", "[fd00::1]:8300", "a.example:1"}}
	t.Secret[0], t.Pin[31] = 1, 2
	return t
}

func TestJoinTokenIsReadAsItWasWritten(t *testing.T) {
	for _, server := range []bool{true, false} {
		want := token()
		want.Server = server
		got, err := intro.ParseJoinToken(" " + want.Text() + "\n")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
}

func TestJoinTokenIsRefused(t *testing.T) {
	change := func(f func(*intro.JoinToken)) string {
		tok := token()
		f(tok)
		return tok.Text()
	}
	good := token().Text()
	for name, text := range map[string]string{
		"empty":              "",
		"prefix alone":       "sarn-join-",
		"without prefix":     strings.TrimPrefix(good, "sarn-join-"),
		"a letter lost":      good[:len(good)-1],
		"a letter changed":   strings.Replace(good, good[40:41], map[bool]string{true: "b", false: "a"}[good[40] == 'a'], 1),
		"two of them":        good + good,
		"much too long":      "sarn-join-" + strings.Repeat("A", 5000),
		"no datacenter":      change(func(t *intro.JoinToken) { t.Datacenter = "" }),
		"odd datacenter":     change(func(t *intro.JoinToken) { t.Datacenter = `dc"` }),
		"odd domain":         change(func(t *intro.JoinToken) { t.Domain = "a..b" }),
		"no addresses":       change(func(t *intro.JoinToken) { t.Addresses = nil }),
		"address, no port":   change(func(t *intro.JoinToken) { t.Addresses = []string{"10.0.0.1"} }),
		"address, port 0":    change(func(t *intro.JoinToken) { t.Addresses = []string{"10.0.0.1:0"} }),
		"address with quote": change(func(t *intro.JoinToken) { t.Addresses = []string{`a":1`} }),
	} {
		got, err := intro.ParseJoinToken(text)
		if !errors.Is(err, intro.ErrJoinToken) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if err != nil && len(text) > 20 && strings.Contains(err.Error(), text[10:20]) {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

// What is read is valid, and says the same when it is written and read again.
func FuzzParseJoinToken(f *testing.F) {
	f.Add(token().Text())
	f.Add("sarn-join-AXMA")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := intro.ParseJoinToken(text)
		if err != nil {
			if !errors.Is(err, intro.ErrJoinToken) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if err := tok.Check(); err != nil {
			t.Fatalf("%q is read as what is refused: %v", text, err)
		}
		again, err := intro.ParseJoinToken(tok.Text())
		if err != nil || !cmp.Equal(tok, again) {
			t.Fatalf("%q: %+v, written and read %+v, %v", text, tok, again, err)
		}
	})
}
