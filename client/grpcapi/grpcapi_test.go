package grpcapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sarnmesh/sarn/client/grpcapi"
)

func dial(t *testing.T, l *bufconn.Listener, creds credentials.TransportCredentials) healthv1.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:agent", grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthv1.NewHealthClient(conn)
}

func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"agent"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

func TestHealthInPlaintextAndOverTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cert, pool := certificate(t)
		plain, secure := bufconn.Listen(1<<16), bufconn.Listen(1<<16)
		s := grpcapi.New([]grpcapi.Listener{
			{Listener: plain}, {Listener: secure, TLS: &tls.Config{Certificates: []tls.Certificate{cert}}},
		}, nil, grpcapi.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		overTLS := dial(t, secure, credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "agent"}))
		for name, c := range map[string]healthv1.HealthClient{"plaintext": dial(t, plain, insecure.NewCredentials()), "TLS": overTLS} {
			r, err := c.Check(ctx, &healthv1.HealthCheckRequest{})
			if err != nil || r.Status != healthv1.HealthCheckResponse_SERVING {
				t.Errorf("%s: %v, %v; want serving", name, r, err)
			}
		}
		if _, err := dial(t, secure, insecure.NewCredentials()).Check(ctx, &healthv1.HealthCheckRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("plaintext to the TLS listener: %v, want unavailable", err)
		}
		watch, err := overTLS.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		for {
			if _, err := watch.Recv(); err != nil {
				break // the open call ended with the server
			}
		}
		if _, err := plain.Dial(); err == nil {
			t.Error("the listener is still open")
		}
	})
}

type broken struct{ net.Listener }

func (broken) Accept() (net.Conn, error) { return nil, errors.New("broken") }

func TestRunEndsWithTheErrorOfAListener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := grpcapi.New([]grpcapi.Listener{{Listener: broken{bufconn.Listen(1)}}, {Listener: bufconn.Listen(1)}}, nil, grpcapi.Config{})
		if err := s.Run(t.Context()); err == nil || err.Error() != "broken" {
			t.Errorf("Run = %v, want broken", err)
		}
	})
}
