package newcomer

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Join shows a token to the servers that it names, one after the other, and returns what one of them told, and the own
// address that it was reached from. A server is verified by the token's pin before it sees the secret. A token is good
// once: when an answer is lost, it is gone.
func Join(ctx context.Context, token *intro.JoinToken, node string, dial func(ctx context.Context, address string) (net.Conn, error)) (*intro.JoinReply, netip.Addr, error) {
	if err := intro.CheckNode(node); err != nil {
		return nil, netip.Addr{}, err
	}
	var errs []error
	for _, address := range token.Addresses {
		reply, from, err := joinBy(ctx, token, address, node, dial)
		if err == nil {
			return reply, from, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
		if status := wireerr.Carried(err); ctx.Err() != nil || status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			break // the others would say the same
		}
	}
	return nil, netip.Addr{}, errors.Join(errs...)
}

// joinBy shows the token to one server.
func joinBy(ctx context.Context, token *intro.JoinToken, address, node string, dial func(ctx context.Context, address string) (net.Conn, error)) (*intro.JoinReply, netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	security := &rpcwire.Security{Pin: token.Pin[:], Domain: token.Domain}
	var from netip.Addr
	client := rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := dial(ctx, address)
		if err != nil {
			return nil, err
		}
		if a, err := netip.ParseAddrPort(conn.LocalAddr().String()); err == nil {
			from = a.Addr().Unmap().WithZone("")
		}
		return security.Secure(ctx, conn, rpcwire.ProtoIntro, token.Datacenter)
	})
	defer client.Close()
	var reply intro.JoinReply
	req := &intro.JoinRequest{Secret: token.Secret[:], Server: token.Server, Node: node}
	if err := client.Call(ctx, address, intro.JoinName, req, &reply); err != nil {
		return nil, netip.Addr{}, err // a connection may still be made: from is not looked at
	}
	if err := checkJoin(token, node, &reply); err != nil {
		return nil, netip.Addr{}, fmt.Errorf("the server's answer is of no use: %w", err)
	}
	return &reply, from, nil
}

// checkJoin refuses an answer that could not be written down as a configuration, or is not what was asked for.
func checkJoin(token *intro.JoinToken, node string, r *intro.JoinReply) error {
	s := &r.Settings
	switch {
	case s.Datacenter != token.Datacenter || intro.CheckDatacenter(s.PrimaryDatacenter) != nil:
		return errors.New("it is of another datacenter")
	case r.Domain != token.Domain:
		return errors.New("it is of another domain")
	case s.NodeName != node:
		return errors.New("it is for another node")
	case token.Server == (r.AuthorityKey == ""):
		return errors.New("it is for another kind of agent")
	case len(s.Gossip.RetryJoin) == 0:
		return errors.New("it names no servers")
	case s.ACL.AgentToken != "" && catalog.CheckUUID(s.ACL.AgentToken) != nil:
		return errors.New("the agent's token is none")
	}
	if key, err := base64.StdEncoding.DecodeString(s.Gossip.Key); err != nil || s.Gossip.Key != "" && len(key) != 16 && len(key) != 24 && len(key) != 32 {
		return errors.New("the gossip key is none")
	}
	for _, a := range s.Gossip.RetryJoin {
		if err := intro.CheckAddress(a); err != nil {
			return err
		}
	}
	pinned := false
	for _, text := range r.Authorities {
		block, _ := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" {
			return errors.New("there is no certificate of an authority")
		}
		sum := sha256.Sum256(block.Bytes)
		pinned = pinned || subtle.ConstantTimeCompare(sum[:], token.Pin[:]) == 1
	}
	if !pinned {
		return errors.New("it does not have the expected authority")
	}
	return nil
}
