package behaviour

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"github.com/sarnmesh/sarn/internal/testkit"
)

// stands start the services that filters ask; each returns its port.
var stands = map[string]func(*testing.T, *world) int{"authz-http": authzHTTP, "authz-grpc": authzGRPC}

// authzHTTP decides by the field x-decide and writes down what it was asked.
func authzHTTP(t *testing.T, w *world) int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rec := &received{line: r.Method + " " + r.RequestURI + " " + r.Proto}
		for k, v := range r.Header {
			rec.fields = append(rec.fields, strings.ToLower(k)+": "+strings.Join(v, ","))
		}
		rec.fields = append(rec.fields, "host: "+r.Host)
		rec.body.ReadFrom(r.Body)
		w.record(r.Header.Get("x-case"), "authz-http", rec)
		switch r.Header.Get("x-decide") {
		case "deny":
			rw.Header().Set("x-why", "because")
			rw.Header().Set("x-secret", "inside")
			rw.WriteHeader(401)
			fmt.Fprint(rw, "go away")
		case "fail":
			rw.WriteHeader(503)
		case "hang":
			select {
			case <-r.Context().Done():
			case <-time.After(2 * time.Second):
			}
		default:
			rw.Header().Set("x-user", "ada")
			rw.Header().Set("x-other", "kept back")
		}
	})}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().(*net.TCPAddr).Port
}

type authzServer struct {
	authv3.UnimplementedAuthorizationServer
	w *world
}

// authzGRPC decides alike.
func authzGRPC(t *testing.T, w *world) int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	authv3.RegisterAuthorizationServer(srv, &authzServer{w: w})
	go srv.Serve(ln)
	t.Cleanup(srv.Stop)
	return ln.Addr().(*net.TCPAddr).Port
}

func (s *authzServer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	h := r.GetAttributes().GetRequest().GetHttp()
	fields := h.GetHeaders()
	rec := &received{line: h.GetMethod() + " " + h.GetPath() + " " + h.GetProtocol()}
	for k, v := range fields {
		rec.fields = append(rec.fields, k+": "+v)
	}
	rec.fields = append(rec.fields, "(host) "+h.GetHost(), fmt.Sprintf("(size) %d", h.GetSize()), "(scheme) "+h.GetScheme())
	for k, v := range r.GetAttributes().GetContextExtensions() {
		rec.fields = append(rec.fields, "(extension) "+k+"="+v)
	}
	rec.body.WriteString(h.GetBody())
	s.w.record(fields["x-case"], "authz-grpc", rec)
	option := func(k, v string, action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, Value: v}, AppendAction: action}
	}
	switch fields["x-decide"] {
	case "deny":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_PaymentRequired}, Body: "pay first",
			Headers: []*corev3.HeaderValueOption{option("x-why", "because", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)},
		}}}, nil
	case "deny plainly":
		return &authv3.CheckResponse{Status: &rpcstatus.Status{Code: 7}}, nil
	case "fail":
		return nil, fmt.Errorf("broken")
	case "hang":
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
		return nil, ctx.Err()
	}
	return &authv3.CheckResponse{Status: &rpcstatus.Status{}, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{
			option("x-user", "ada", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
			option("x-list", "two", corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD),
		},
		HeadersToRemove:      []string{"x-drop"},
		ResponseHeadersToAdd: []*corev3.HeaderValueOption{option("x-checked", "yes", corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)},
	}}}, nil
}

// keys are what proxies and clients of a run know each other by.
type keys struct {
	ca     *testkit.CA
	other  *testkit.CA
	client *tls.Certificate
	jwt    *ecdsa.PrivateKey
}

// IDs of the mesh.
const (
	serverID = "spiffe://td/svc/server"
	clientID = "spiffe://td/svc/client"
)

func newKeys(t *testing.T, w *world) *keys {
	k := &keys{ca: testkit.NewCA(t, "ca"), other: testkit.NewCA(t, "other")}
	k.client = k.ca.Issue(clientID, "client.test")
	server := k.ca.Issue(serverID, "server.test")
	write := func(name string, blocks ...*pem.Block) {
		var b []byte
		for _, p := range blocks {
			b = append(b, pem.EncodeToMemory(p)...)
		}
		path := filepath.Join(w.dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		w.vars[name] = path
	}
	der, err := x509.MarshalPKCS8PrivateKey(server.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	write("server.key", &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	write("server.crt", &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate[0]})
	write("ca.crt", &pem.Block{Type: "CERTIFICATE", Bytes: k.ca.Certificate().Raw})
	sum := sha256.Sum256(k.client.Certificate[0])
	w.hide[hex.EncodeToString(sum[:])] = "hash of the client's certificate"
	escaped := url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.client.Certificate[0]})))
	w.hide[strings.ReplaceAll(escaped, "+", "%20")] = "client certificate"

	if k.jwt, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding.EncodeToString
	pub, err := k.jwt.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	jwks, _ := json.Marshal(dict{"keys": []any{dict{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1", "x": enc(pub[1:33]), "y": enc(pub[33:])}}})
	w.vars["jwks"] = string(jwks)
	now := time.Now().Unix()
	hour := int64(3600)
	for name, claims := range map[string]dict{
		"good":      {"iss": "https://idp", "aud": "web", "sub": "ada", "exp": now + hour},
		"expired":   {"iss": "https://idp", "aud": "web", "sub": "ada", "exp": now - hour},
		"early":     {"iss": "https://idp", "aud": "web", "sub": "ada", "exp": now + 2*hour, "nbf": now + hour},
		"audience":  {"iss": "https://idp", "aud": []string{"other", "more"}, "sub": "ada", "exp": now + hour},
		"stranger":  {"iss": "https://else", "aud": "web", "sub": "ada", "exp": now + hour},
		"second":    {"iss": "https://second", "sub": "bob", "exp": now + hour},
		"noexpiry":  {"iss": "https://idp", "aud": "web", "sub": "ada"},
		"noissuer":  {"aud": "web", "sub": "ada", "exp": now + hour},
		"audiences": {"iss": "https://idp", "aud": []string{"other", "web"}, "sub": "ada", "exp": now + hour},
		"nested":    {"iss": "https://idp", "aud": "web", "sub": "ada", "exp": now + hour, "team": dict{"name": "blue", "size": 7}, "roles": []string{"x", "y"}},
	} {
		w.vars["jwt."+name] = k.sign(t, dict{"alg": "ES256", "kid": "k1", "typ": "JWT"}, claims)
		w.hide[w.vars["jwt."+name]] = "jwt " + name
		w.hide[strings.Split(w.vars["jwt."+name], ".")[1]] = "payload of jwt " + name
	}
	good := strings.Split(w.vars["jwt.good"], ".")
	sig := []byte(good[2])
	slices.Reverse(sig[:20])
	w.vars["jwt.forged"] = good[0] + "." + good[1] + "." + string(sig)
	w.vars["jwt.none"] = enc([]byte(`{"alg":"none"}`)) + "." + good[1] + "."
	w.vars["jwt.kid"] = k.sign(t, dict{"alg": "ES256", "kid": "k2"}, dict{"iss": "https://idp", "aud": "web", "exp": now + hour})
	return k
}

func (k *keys) sign(t *testing.T, header, claims dict) string {
	enc := base64.RawURLEncoding.EncodeToString
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	text := enc(h) + "." + enc(c)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, k.jwt, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + enc(sig)
}

// Ways a client speaks TLS.
func tlsPlain(w *world) *tls.Config {
	return &tls.Config{RootCAs: w.keys.ca.Pool(), ServerName: "server.test", InsecureSkipVerify: true}
}

func mtls(w *world) *tls.Config {
	c := tlsPlain(w)
	c.Certificates = []tls.Certificate{*w.keys.client}
	return c
}

func mtlsH2(w *world) *tls.Config {
	c := mtls(w)
	c.NextProtos = []string{"h2"}
	return c
}

// stranger has a certificate from somewhere else.
func stranger(w *world) *tls.Config {
	c := tlsPlain(w)
	c.Certificates = []tls.Certificate{*w.keys.other.Issue("spiffe://td/svc/client")}
	return c
}

func sni(name string, protos ...string) func(*world) *tls.Config {
	return func(w *world) *tls.Config {
		c := tlsPlain(w)
		c.ServerName, c.NextProtos = name, protos
		return c
	}
}
