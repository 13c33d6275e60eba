package introrpc_test

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/agentcert"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/introrpc"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/rpctest"
)

const serversSecret = "the servers' secret"

// A cluster is one server with an introducer.
type cluster struct {
	*rpctest.Server
	join      func(*intro.JoinRequest) (*intro.JoinReply, error)
	authority string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	cert, key, err := agentcert.Authority{Validity: 24 * time.Hour}.Make(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	in, err := introrpc.New(introrpc.Config{
		Datacenter: "dc1", ServerRoots: func() []string { return []string{string(cert)} }, Settings: func() intro.Settings { return intro.Settings{Datacenter: "dc1"} },
		Join: &introrpc.Join{
			Domain: "consul", Authority: func() (string, string, error) { return string(cert), string(key), nil },
			Servers: func() ([]string, []string) { return []string{"10.0.0.1:8300"}, []string{"10.0.0.1:8301"} },
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := rpctest.New()
	catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{})
	in.Register(&s.Registry, &s.Appliers)
	in.Connect(s.Caller(), s.Caller().Internal(), func() string { return serversSecret })
	c := &cluster{Server: s, authority: string(cert)}
	for _, m := range in.Methods() {
		if m.Name == intro.JoinName {
			c.join = func(req *intro.JoinRequest) (*intro.JoinReply, error) {
				reply, err := m.Handle(t.Context(), rpcwire.Peer{}, func(v any) error { *v.(*intro.JoinRequest) = *req; return nil })
				if err != nil {
					return nil, err
				}
				return reply.(*intro.JoinReply), nil
			}
		}
	}
	return c
}

func (c *cluster) token(t *testing.T, server bool, ttl time.Duration) *intro.JoinToken {
	t.Helper()
	reply, err := intro.NewJoinTokenCall.Call(t.Context(), c.Caller(), &intro.NewJoinTokenRequest{Server: server, TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	token, err := intro.ParseJoinToken(reply.Text)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func show(token *intro.JoinToken, node string) *intro.JoinRequest {
	return &intro.JoinRequest{Secret: token.Secret[:], Server: token.Server, Node: node}
}

func refused(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestTokenSaysWhomToTrust(t *testing.T) {
	c := newCluster(t)
	token := c.token(t, true, 0)
	block, _ := pem.Decode([]byte(c.authority))
	if token.Pin != sha256.Sum256(block.Bytes) || token.Datacenter != "dc1" || token.Addresses[0] != "10.0.0.1:8300" || !token.Server {
		t.Errorf("%+v", token)
	}
}

// Many machines show one token at once: one is told what it needs.
func TestOneOfManyJoins(t *testing.T) {
	c := newCluster(t)
	token := c.token(t, false, 0)
	var wg sync.WaitGroup
	var mu sync.Mutex
	joined := 0
	for i := range 20 {
		wg.Go(func() {
			_, err := c.join(show(token, fmt.Sprintf("n%d", i)))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				joined++
			} else {
				refused(t, err, "was used before")
			}
		})
	}
	wg.Wait()
	if joined != 1 {
		t.Errorf("%d machines joined by one token", joined)
	}
}

func TestWhatATokenIsGoodFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		client, server := c.token(t, false, time.Minute), c.token(t, true, time.Hour)

		asServer := show(client, "n1")
		asServer.Server = true
		_, err := c.join(asServer)
		refused(t, err, "for another kind of agent")
		asClient := show(server, "n1")
		asClient.Server = false
		_, err = c.join(asClient)
		refused(t, err, "for another kind of agent")

		other := *client
		other.Secret[3] ^= 1
		_, err = c.join(show(&other, "n1"))
		refused(t, err, "is not accepted")
		_, err = c.join(&intro.JoinRequest{Node: "n1"})
		refused(t, err, "is not accepted")
		for _, name := range []string{"", "a b", "x/y", strings.Repeat("n", 200)} {
			_, err = c.join(show(client, name))
			refused(t, err, "invalid node name")
		}

		// A client is not told the key of the authority, a server is.
		reply, err := c.join(show(server, "s1"))
		if err != nil || !strings.Contains(reply.AuthorityKey, "PRIVATE KEY") || reply.Settings.NodeName != "s1" || reply.Authorities[0] != c.authority || len(reply.Authorities) != 1 {
			t.Errorf("%v, %+v", err, reply)
		}
		// The name is taken while nobody knows whether that server came.
		_, err = c.join(show(client, "S1"))
		refused(t, err, "has just joined")
		// So is that of a node of the catalog.
		if _, err := catalog.RegisterCall.Call(t.Context(), c.Caller(), &catalog.RegisterRequest{Node: "n1", Address: "10.0.0.9"}); err != nil {
			t.Fatal(err)
		}
		_, err = c.join(show(client, "N1"))
		refused(t, err, "there is a node")

		// None of this has used up the token.
		reply, err = c.join(show(client, "n2"))
		if err != nil || reply.AuthorityKey != "" {
			t.Errorf("%v, %+v", err, reply)
		}
		late := c.token(t, false, time.Minute)
		time.Sleep(time.Minute)
		_, err = c.join(show(late, "n3"))
		refused(t, err, "has expired")
	})
}

// What has expired does not stay, also where nobody makes tokens any more.
func TestExpiredTokensAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.token(t, false, time.Minute)
		used := c.token(t, false, 3*time.Minute)
		if _, err := c.join(show(used, "n1")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			leader.Run(ctx, &leader.Leader{Store: c.Store, Apply: c.Apply, Log: hclog.NewNullLogger()}, []leader.Duty{introrpc.SweepJoinTokens()})
		}()
		kept := func() int {
			var list []any
			if f := c.Store.View().Fact("join-tokens"); f != nil {
				if err := rpc.Unmarshal(f.Data, &list); err != nil {
					t.Fatal(err)
				}
			}
			return len(list)
		}
		for _, want := range []int{2, 1, 1, 0} {
			synctest.Wait()
			if got := kept(); got != want {
				t.Errorf("%d tokens are kept, want %d", got, want)
			}
			time.Sleep(time.Minute + time.Second)
		}
		before := c.Index()
		time.Sleep(time.Hour)
		synctest.Wait()
		if c.Index() != before {
			t.Error("without tokens something is written")
		}
		cancel()
		<-done
	})
}

func TestTokensAreBounded(t *testing.T) {
	c := newCluster(t)
	var err error
	for i := 0; i < 300 && err == nil; i++ {
		_, err = intro.NewJoinTokenCall.Call(t.Context(), c.Caller(), &intro.NewJoinTokenRequest{})
	}
	refused(t, err, "too many join tokens")
	for _, ttl := range []time.Duration{-1, time.Millisecond, 25 * time.Hour} {
		_, err := intro.NewJoinTokenCall.Call(t.Context(), c.Caller(), &intro.NewJoinTokenRequest{TTL: ttl})
		refused(t, err, "TTL")
	}
}

// Who guesses is slowed down, and puts nothing into the log.
func TestGuessingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		guess := &intro.JoinRequest{Secret: make([]byte, intro.SecretSize), Node: "n"}
		before, slowed := c.Index(), 0
		for range 200 {
			_, err := c.join(guess)
			if err != nil && strings.Contains(err.Error(), "too many machines are joining") {
				slowed++
			}
		}
		if slowed != 150 || c.Index() != before {
			t.Errorf("%d of 200 guesses were slowed down; %d log entries", slowed, c.Index()-before)
		}
		time.Sleep(time.Second)
		if _, err := c.join(show(c.token(t, false, 0), "n")); err != nil {
			t.Errorf("after a second: %v", err)
		}
	})
}

func TestTokensNeedBothRights(t *testing.T) {
	c := newCluster(t)
	var rules string
	c.Resolve = func(string) (*acl.Authorizer, error) {
		p, err := acl.Parse(rules)
		if err != nil {
			return nil, err
		}
		return acl.New(acl.Compile(false, p), "x"), nil
	}
	for r, want := range map[string]bool{``: false, `operator = "write"`: false, `acl = "write"`: false, `acl = "read" operator = "write"`: false, `acl = "write" operator = "write"`: true} {
		rules = r
		_, err := intro.NewJoinTokenCall.Call(t.Context(), c.Caller(), &intro.NewJoinTokenRequest{})
		if (err == nil) != want {
			t.Errorf("with %q: %v", r, err)
		}
	}
}

// The leader believes servers alone.
func TestRedeemNeedsTheSecretOfTheServers(t *testing.T) {
	c := newCluster(t)
	token := c.token(t, true, 0)
	_, err := intro.RedeemCall.Call(t.Context(), c.Caller(), &intro.RedeemRequest{Join: *show(token, "n"), Secret: "guessed"})
	refused(t, err, "only servers")
	_, err = intro.OwnTokenCall.Call(t.Context(), c.Caller(), &intro.OwnTokenRequest{Node: "n"})
	refused(t, err, "only servers")
	if _, err := c.join(show(token, "n")); err != nil {
		t.Error(errors.Join(errors.New("the token was used up"), err))
	}
}
