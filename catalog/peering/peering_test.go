package peering_test

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/internal/testkit"
)

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "cluster-b": true, "0": true, strings.Repeat("x", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a_b": false, "a.b": false, strings.Repeat("x", 64): false, "a/b": false, "a\x00": false,
	} {
		if err := peering.CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func token(t testing.TB, change func(*peering.Token)) string {
	ca := testkit.NewCA(t, "ca")
	tok := &peering.Token{
		CA: []string{pemOf(ca)}, ServerAddresses: []string{"10.0.0.1:8503", "servers.example.com:8503"},
		ServerName: "server.dc1.peering.11111111-2222-3333-4444-555555555555.consul", PeerID: "id", EstablishmentSecret: "secret",
	}
	change(tok)
	text, err := tok.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestDecodeToken(t *testing.T) {
	tests := []struct {
		name   string
		change func(*peering.Token)
		want   string // in the error, empty for none
	}{
		{"good", func(*peering.Token) {}, ""},
		{"addresses by hand", func(x *peering.Token) { x.ServerAddresses, x.ManualServerAddresses = nil, []string{"lb:443"} }, ""},
		{"no addresses", func(x *peering.Token) { x.ServerAddresses = nil }, "peering token server addresses value is empty"},
		{"no name", func(x *peering.Token) { x.ServerName = "" }, "peering token server name value is empty"},
		{"no ID", func(x *peering.Token) { x.PeerID = "" }, "peering token peer ID value is empty"},
		{"no CA", func(x *peering.Token) { x.CA = nil }, "peering token CA value is invalid"},
		{"bad CA", func(x *peering.Token) { x.CA = []string{"x"} }, "peering token CA value is invalid"},
		{"bad address", func(x *peering.Token) { x.ServerAddresses = []string{"10.0.0.1"} }, "not a host and port"},
		{"port 0", func(x *peering.Token) { x.ServerAddresses = []string{"10.0.0.1:0"} }, "not a host and port"},
		{"another scheme", func(x *peering.Token) { x.ServerAddresses = []string{"unix:///run/x"} }, "not a host and port"},
		{"another name", func(x *peering.Token) { x.ServerName = "localhost" }, "is not the name of servers"},
		{"too many addresses", func(x *peering.Token) { x.ServerAddresses = make([]string, 1000) }, "there are more than"},
		{"a long ID", func(x *peering.Token) { x.PeerID = strings.Repeat("x", 1000) }, "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := peering.DecodeToken(token(t, tt.change))
			if tt.want == "" && (err != nil || got.EstablishmentSecret != "secret") || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret\"") {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
	for _, text := range []string{"%%", "", "e30", base64.StdEncoding.EncodeToString([]byte(`{"EstablishmentSecret": 5}`)), strings.Repeat("A", 1<<20)} {
		if _, err := peering.DecodeToken(text); err == nil || !strings.HasPrefix(err.Error(), "failed to decode token: ") {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}

func TestMatches(t *testing.T) {
	d := peering.Digest("secret")
	if !peering.Matches(d, "secret") || peering.Matches(d, "Secret") || peering.Matches(nil, "") || peering.Matches([]byte{}, "secret") || peering.Matches(d[:8], "secret") {
		t.Error("a secret is recognised by its digest alone")
	}
}

// What is decoded is fit to be dialed, and decodes again from what it encodes to.
func FuzzDecodeToken(f *testing.F) {
	f.Add(token(f, func(*peering.Token) {}))
	f.Add("e30=")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := peering.DecodeToken(text)
		if err != nil {
			return
		}
		if len(tok.Addresses()) == 0 || peering.CheckAddresses(tok.Addresses()) != nil || peering.CheckRoots(tok.CA) != nil {
			t.Fatalf("accepted %+v", tok)
		}
		if td, err := peering.ServerTrustDomain(tok.ServerName); err != nil || !peering.IsTrustDomain(td) {
			t.Fatalf("accepted the name %q", tok.ServerName)
		}
		again, err := tok.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := peering.DecodeToken(again); err != nil {
			t.Fatal(err)
		}
	})
}

// The form of the API shows no more than it should, and null where there is nothing yet.
func TestShownJSON(t *testing.T) {
	data, err := json.Marshal(&peering.Shown{Peering: peering.Peering{ID: "id", Name: "p", State: peering.Pending, ManualAddresses: []string{"x:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"ID":"id","Name":"p","State":"PENDING","StreamStatus":{"ImportedServices":null,"ExportedServices":null,"LastHeartbeat":null,` +
		`"LastReceive":null,"LastSend":null},"CreateIndex":0,"ModifyIndex":0,"Remote":{"Partition":"","Datacenter":""}}`
	if string(data) != want {
		t.Errorf("got  %s\nwant %s", data, want)
	}
}

func pemOf(ca *testkit.CA) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}))
}
