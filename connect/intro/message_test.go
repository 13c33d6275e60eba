package intro_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// messages are what servers and agents say to one another.
var messages = []any{
	intro.HelloRequest{}, intro.HelloReply{TrustDomain: "x.consul"},
	intro.SignRequest{Applicant: intro.Applicant{Datacenter: "dc1", Node: "n1", CSR: "pem", DNSNames: []string{"a"}, IPs: []string{"::1"}}, Token: "t"},
	intro.Identity{CertPEM: "pem", ValidAfter: time.Unix(1, 0).UTC(), ServerRoots: []string{"pem"}, VerifyServerHostname: true},
	intro.ConfigureRequest{Applicant: intro.Applicant{Node: "n1"}, JWT: "a.b.c"},
	intro.ConfigureReply{Settings: intro.Settings{Datacenter: "dc1", ACL: intro.ACL{TokenTTL: time.Second}, Gossip: intro.Gossip{Key: "k", RetryJoin: []string{"a:1"}}}},
	intro.AdmitRequest{Secret: "s", WantToken: true}, intro.AdmitReply{CertPEM: "pem", Token: "t"},
	intro.JoinRequest{Secret: []byte{1}, Server: true, Node: "n1"}, intro.JoinReply{Domain: "consul", Authorities: []string{"pem"}, AuthorityKey: "pem"},
	intro.RedeemRequest{Join: intro.JoinRequest{Node: "n1"}, Secret: "s"}, intro.RedeemReply{AgentToken: "t"},
}

// What is read of a message is the same when it is written and read again, whoever sent it.
func FuzzMessages(f *testing.F) {
	for i, m := range messages {
		data, err := rpc.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), data)
	}
	f.Fuzz(func(t *testing.T, which byte, data []byte) {
		typ := reflect.TypeOf(messages[int(which)%len(messages)])
		first, second := reflect.New(typ).Interface(), reflect.New(typ).Interface()
		if rpc.Unmarshal(data, first) != nil {
			return
		}
		written, err := rpc.Marshal(first)
		if err != nil {
			t.Skip() // a time that cannot be written
		}
		if err := rpc.Unmarshal(written, second); err != nil {
			t.Fatalf("%T is read, and not once it is written again: %v", first, err)
		}
		again, err := rpc.Marshal(second)
		if err != nil || !bytes.Equal(written, again) {
			t.Fatalf("%+v is written as %x, then as %x: %v", first, written, again, err)
		}
	})
}

// A name that is accepted is nothing but a name wherever it is put: in a selector, a path, a line of a log.
func FuzzCheckNode(f *testing.F) {
	for _, s := range []string{"n1", "a.b-c_D", "", "-", ".", "..", "a\n", "a\" or \"", "${node}", strings.Repeat("a", 128), strings.Repeat("a", 129), "\u00e9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ok := name != "" && len(name) <= 128 && !strings.ContainsAny(name[:1], "_.-")
		for _, c := range []byte(name) {
			ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.-", c) >= 0)
		}
		if err := intro.CheckNode(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	})
}
