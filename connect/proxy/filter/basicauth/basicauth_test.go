package basicauth_test

import (
	"crypto/sha1"
	"encoding/base64"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter/basicauth"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
)

func users(t testing.TB, pairs ...string) basicauth.Users {
	text := "\n"
	for i := 0; i < len(pairs); i += 2 {
		sum := sha1.Sum([]byte(pairs[i+1]))
		text += pairs[i] + ":{SHA}" + base64.StdEncoding.EncodeToString(sum[:]) + "\r\n"
	}
	u, err := basicauth.ParseUsers(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUsers(t *testing.T) {
	b := filtertest.New(t, basicauth.Type, &basicauth.Config{Users: users(t, "bob", "s:ecret", "ann", ""), ForwardHeader: "x-user"})
	enc := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, tt := range []struct {
		name   string
		fields []string
		user   string
		body   string
	}{
		{"good", []string{"authorization", "Basic " + enc("bob:s:ecret")}, "bob", ""},
		{"empty password", []string{"authorization", "basic " + enc("ann:")}, "ann", ""},
		{"none", []string{"x-user", "forged"}, "", "User authentication failed. Missing username and password."},
		{"other scheme", []string{"authorization", "Bearer x"}, "", "User authentication failed. Expected 'Basic' authentication scheme."},
		{"two", []string{"authorization", "Basic " + enc("bob:s:ecret"), "authorization", "Basic " + enc("bob:s:ecret")}, "", "User authentication failed. Expected 'Basic' authentication scheme."},
		{"no base64", []string{"authorization", "Basic !"}, "", "User authentication failed. Invalid basic credential format."},
		{"no colon", []string{"authorization", "Basic " + enc("bob")}, "", "User authentication failed. Invalid basic credential format."},
		{"wrong password", []string{"authorization", "Basic " + enc("bob:x")}, "", "User authentication failed. Invalid username/password combination."},
		{"unknown", []string{"authorization", "Basic " + enc("eve:x")}, "", "User authentication failed. Invalid username/password combination."},
	} {
		x := b.Exchange("GET", "/a?b", tt.fields...)
		res := b.Run(x, nil)
		if res.Body != tt.body || x.Request.Header.Get("x-user") != tt.user {
			t.Errorf("%s: %q, user %q", tt.name, res.Body, x.Request.Header.Get("x-user"))
		}
		if tt.body != "" && (res.Status != 401 || res.Header.Get("www-authenticate") != `Basic realm="http://web.test/a"`) {
			t.Errorf("%s: %d %s", tt.name, res.Status, filtertest.Fields(&res.Header))
		}
	}
	b.Route(&basicauth.Config{Users: users(t, "eve", "x")})
	if res := b.Run(b.Exchange("GET", "/", "authorization", "Basic "+enc("eve:x")), nil); res.Reply != nil {
		t.Errorf("%q for a user of the route", res.Body)
	}
}

func FuzzParseUsers(f *testing.F) {
	f.Add("bob:{SHA}2kuSN7rMzfGcB2DKt67EqDWQELA=")
	f.Add("bob:secret\n")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := basicauth.ParseUsers(s)
		if err == nil && len(u) == 0 {
			t.Errorf("%q: nobody, and no error", s)
		}
		for name := range u {
			if name == "" {
				t.Errorf("%q: a user without a name", s)
			}
		}
	})
}
