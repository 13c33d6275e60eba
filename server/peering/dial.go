package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/peeringrpc"
)

// Times of calls to peers.
const (
	connectTime = 10 * time.Second // to reach one address and be answered
	firstRetry  = time.Second
	moreCalls   = 6                // to addresses behind which there are servers that do not lead
	lasting     = 10 * time.Second // that a stream was up for, after which it is dialed again at once
	failures    = 3                // rounds of attempts in a row after which a peering is failing
)

// A place is where the servers of a peer are, and who they are.
type place struct {
	addresses []string
	roots     []string
	name      string
}

// A redirect says which address to try instead.
type redirect struct {
	address string // empty when that is not known
}

func (*redirect) Error() string { return "the server that was called does not lead" }

// connect prepares a connection to an address; it is made when it is used first.
func (e *Engine) connect(at place, address string) (*grpc.ClientConn, error) {
	pool := x509.NewCertPool()
	for _, pem := range at.roots {
		if !pool.AppendCertsFromPEM([]byte(pem)) {
			return nil, errors.New("a certificate of the peer cannot be read")
		}
	}
	conf := &tls.Config{RootCAs: pool, ServerName: at.name, MinVersion: tls.VersionTLS12}
	return grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return e.cfg.Dial(ctx, address) }),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTime}))
}

// somewhere calls f with the addresses of a place, one after the other, until it has done something that is final. Of
// those, the leader's is tried first once it is known.
func somewhere(ctx context.Context, at place, begin int, f func(address string) error) error {
	var errs []error
	begin %= len(at.addresses)
	list := slices.Concat(at.addresses[begin:], at.addresses[:begin])
	for n := 0; n < len(list); n++ {
		err := f(list[n])
		if err == nil || ctx.Err() != nil || final(err) {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", list[n], err))
		r, moved := errors.AsType[*redirect](err)
		switch {
		case !moved:
		case r.address != "" && !slices.Contains(list, r.address):
			list = slices.Insert(list, n+1, r.address)
		case r.address != "" && slices.Index(list, r.address) > n: // it is next
			list = slices.Insert(slices.DeleteFunc(list, func(a string) bool { return a == r.address }), n+1, r.address)
		case r.address == "" && len(list) < len(at.addresses)+moreCalls && pause.For(ctx, firstRetry/5):
			list = append(list, list[n]) // where several servers are behind an address, the next call may reach the leader
		}
	}
	return errors.Join(errs...)
}

// final reports whether another address would say the same.
func final(err error) bool {
	return errors.Is(err, peeringrpc.ErrSecretUsed) || errors.Is(err, errHeard) || errors.Is(err, errEnded)
}

// errHeard wraps why a stream that was up has ended.
var errHeard = errors.New("the stream has ended")

// understand makes of an answer's error one that tells what to do.
func understand(err error, trailer metadata.MD) error {
	switch status.Code(err) {
	case codes.OK:
		return nil
	case codes.PermissionDenied:
		return peeringrpc.ErrSecretUsed
	case codes.Unimplemented:
		return errors.New("the server that was called knows no peers of this kind: both clusters must be Sarn's")
	case codes.FailedPrecondition:
		r := &redirect{}
		if a := trailer.Get(leaderKey); len(a) == 1 && peering.CheckAddresses(a) == nil {
			r.address = a[0]
		}
		return r
	}
	return errors.New(status.Convert(err).Message())
}

// Exchange shows the other side the secret of a token and returns the one that streams are opened with.
func (e *Engine) Exchange(ctx context.Context, t *peering.Token) (secret string, err error) {
	at := place{addresses: t.Addresses(), roots: t.CA, name: t.ServerName}
	err = somewhere(ctx, at, 0, func(address string) error {
		ctx, cancel := context.WithTimeout(ctx, connectTime)
		defer cancel()
		conn, err := e.connect(at, address)
		if err != nil {
			return err
		}
		defer conn.Close()
		req, err := pack(&exchangeRequest{Peering: t.PeerID, Secret: t.EstablishmentSecret})
		if err != nil {
			return err
		}
		var out wrapperspb.BytesValue
		var trailer metadata.MD
		if err := conn.Invoke(ctx, exchangeMethod, req, &out, grpc.Trailer(&trailer)); err != nil {
			return understand(err, trailer)
		}
		var reply exchangeReply
		if err := decode(out.Value, &reply); err != nil {
			return err
		}
		if reply.Secret == "" || len(reply.Secret) > maxText {
			return errors.New("the peer gave no secret")
		}
		secret = reply.Secret
		return nil
	})
	return secret, err
}

// keepDialing keeps the stream of a peering up until ctx ends.
func (e *Engine) keepDialing(ctx context.Context, now *leading, id string) {
	wait, failed := firstRetry, 0
	for begin := 0; ; begin++ {
		v := now.l.Store.View()
		p, secrets := v.PeeringByID(id), v.PeeringSecrets(id)
		if p == nil || secrets == nil || !p.Open() {
			return
		}
		began := time.Now()
		err := e.dial(ctx, now, p, secrets.Stream, begin)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errEnded):
			e.ended(now, p, err)
			return
		case errors.Is(err, errHeard):
			e.ended(now, p, err)
			failed = 0
			if time.Since(began) > lasting {
				wait = firstRetry
			}
		default:
			failed++
			e.log.Warn("cannot reach the peer, will retry", "peer", p.Name, "wait", wait, "error", err)
			if failed >= failures {
				if p := now.l.Store.View().PeeringByID(id); p != nil {
					e.setState(ctx, now, p, peering.Failing)
				}
			}
		}
		if !pause.For(ctx, wait/2+time.Duration(rand.Int64N(int64(wait/2)+1))) {
			return
		}
		wait = min(2*wait, e.cfg.MaxBackoff)
	}
}

// dial opens the stream of a peering and talks over it until it ends. The error wraps errHeard when it was up.
func (e *Engine) dial(ctx context.Context, now *leading, p *peering.Peering, secret string, begin int) error {
	at := place{addresses: p.PeerServerAddresses, roots: p.PeerCAPems, name: p.PeerServerName}
	if len(at.addresses) == 0 {
		return errors.New("the peer has no addresses")
	}
	return somewhere(ctx, at, begin, func(address string) error {
		return e.open(ctx, at, address, p, secret, func(ctx context.Context, c carrier, other *hello) error {
			err := e.converse(ctx, now, p, c, *other)
			if errors.Is(err, errEnded) {
				return err
			}
			return fmt.Errorf("%w: %w", errHeard, err)
		})
	})
}

// open opens a stream at an address and calls f once the other side has welcomed it.
func (e *Engine) open(ctx context.Context, at place, address string, p *peering.Peering, secret string, f func(context.Context, carrier, *hello) error) error {
	conn, err := e.connect(at, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	// The stream outlives ctx by as long as it takes to say goodbye.
	carried, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	late := context.AfterFunc(ctx, end)
	slow := time.AfterFunc(connectTime, end)
	cs, err := conn.NewStream(carried, &description.Streams[0], streamMethod)
	if err != nil {
		return understand(err, nil)
	}
	fail := func(err error) error {
		if status.Code(err) == codes.Unknown && !errors.Is(err, context.Canceled) {
			return err
		}
		return understand(err, cs.Trailer())
	}
	if err := send(cs, &message{Open: &hello{Peering: p.PeerID, Secret: secret, Datacenter: e.cfg.Datacenter}}); err != nil {
		_, err = receive(cs) // tells why
		return fail(err)
	}
	m, err := receive(cs)
	switch {
	case err != nil:
		return fail(err)
	case m.End:
		return errEnded
	case m.Welcome == nil:
		return errors.New("the peer did not answer as peers do")
	case !slow.Stop() || !late():
		return context.DeadlineExceeded
	}
	defer context.AfterFunc(ctx, func() { slow.Reset(2 * farewell) })()
	defer slow.Stop()
	return f(ctx, cs, m.Welcome)
}

// sayGoodbye tells a peer that is not connected that the peering was deleted here, if it can be reached soon.
func (e *Engine) sayGoodbye(ctx context.Context, p *peering.Peering) {
	ctx, cancel := context.WithTimeout(ctx, connectTime/2)
	defer cancel()
	s := e.cfg.Store.View().PeeringSecrets(p.ID)
	if s == nil || s.Stream == "" || len(p.PeerServerAddresses) == 0 {
		return
	}
	at := place{addresses: p.PeerServerAddresses, roots: p.PeerCAPems, name: p.PeerServerName}
	err := somewhere(ctx, at, 0, func(address string) error {
		return e.open(ctx, at, address, p, s.Stream, func(ctx context.Context, c carrier, _ *hello) error {
			if err := send(c, &message{End: true}); err != nil {
				return err
			}
			for ctx.Err() == nil {
				if _, err := receive(c); err != nil {
					break
				}
			}
			return nil
		})
	})
	if err != nil {
		e.log.Debug("the peer was not told that the peering was deleted", "peer", p.Name, "error", err)
	}
}
