package awspca_test

import (
	"crypto"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
	"github.com/sarnmesh/sarn/server/caprovider/awspca"
	"github.com/sarnmesh/sarn/server/caprovider/awstest"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

var domain = connect.TrustDomain(clusterID)

// newKind returns a kind for which a handler is AWS.
func newKind(t *testing.T, h http.Handler, secret string) awspca.Kind {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return awspca.Kind{Getenv: func(name string) string {
		return map[string]string{
			"AWS_ENDPOINT_URL": s.URL, "AWS_REGION": awstest.Region, "AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": secret,
		}[name]
	}}
}

func newServer() *awstest.Server {
	return &awstest.Server{Credentials: awsauth.Credentials{KeyID: "AKID", Secret: "the-secret"}}
}

func wanted(t *testing.T, config map[string]any) caprovider.Wanted {
	t.Helper()
	s, err := ca.ParseSettings(ca.AWSPCA, config)
	if err != nil {
		t.Fatal(err)
	}
	return caprovider.Wanted{Config: config, Settings: s, ClusterID: clusterID}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ca.GenerateKey(rand.Reader, ca.KeyEC, 256)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// An authority of the operator's that is not a root signs as an intermediate, and is left alone.
func TestExistingSubordinate(t *testing.T) {
	rootKey, key := newKey(t), newKey(t)
	rootPEM, err := ca.NewRoot(ca.RootParams{Key: rootKey, Serial: 3, ClusterID: clusterID, Label: "corp", Now: time.Now(), TTL: 9000 * time.Hour, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	corp, err := ca.NewBuiltIn(rootPEM, rootKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.NewCSR(connect.CAID(domain), key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ca.ParseIntermediateCSR(text, domain)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.SignIntermediate(t.Context(), r, ca.IntermediateParams{Provider: corp, Datacenter: "aws", Serial: []byte{9}, Now: time.Now(), TTL: 5000 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	server := newServer()
	arn := server.AddSubordinate(key, cert, rootPEM)
	kind := newKind(t, server, "the-secret")
	config := map[string]any{"ExistingARN": arn, "DeleteOnExit": true}
	kept, err := kind.Establish(t.Context(), wanted(t, config))
	if err != nil {
		t.Fatal(err)
	}
	kept.Config = config
	if err := ca.CheckEstablished(kept, clusterID, time.Now()); err != nil || kept.RootCert != rootPEM || kept.Intermediate != cert {
		t.Fatalf("established %+v, %v", kept.State, err)
	}
	p, err := kind.Open(kept, clusterID)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	root, err := ca.DescribeRoot(rootPEM, "corp", clusterID)
	if err != nil {
		t.Fatal(err)
	}
	leafCSR, err := ca.NewCSR(connect.ServiceID(domain, "dc1", "web"), newKey(t), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := ca.ParseCSR(leafCSR, domain, "dc1")
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.SignLeaf(t.Context(), request, ca.LeafParams{Provider: p, Root: root, Serial: []byte{0x40, 2}, Now: time.Now(), TTL: 30 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(leaf.CertPEM, "BEGIN CERTIFICATE"); n != 2 {
		t.Errorf("the leaf comes with %d certificates", n)
	}
	if _, err := p.SignIntermediate(t.Context(), nil, nil); err == nil || !strings.Contains(err.Error(), "not a root itself") {
		t.Errorf("another datacenter: %v", err)
	}
	w := wanted(t, config)
	w.Current, w.New = kept, true
	if _, err := kind.Establish(t.Context(), w); err == nil || !strings.Contains(err.Error(), "ExistingARN") {
		t.Errorf("another root of the same authority: %v", err)
	}
	if err := p.Cleanup(t.Context(), nil); err != nil || server.Authorities()[arn] != "ACTIVE" {
		t.Errorf("cleaned up: %v, it is %s", err, server.Authorities()[arn])
	}
}

// Who did not get to know the answer and asks again pays for one authority only.
func TestAuthorityIsMadeOnce(t *testing.T) {
	server := newServer()
	kind := newKind(t, server, "the-secret")
	var first *trust.ProviderState
	for range 2 {
		kept, err := kind.Establish(t.Context(), wanted(t, map[string]any{}))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = kept
		}
		if kept.RootCert != first.RootCert {
			t.Error("another root")
		}
	}
	if n := len(server.Authorities()); n != 1 {
		t.Errorf("%d authorities", n)
	}
}

// An authority that cannot be completed does not stay, and is not paid for.
func TestHalfMadeAuthorityIsRemoved(t *testing.T) {
	server := newServer()
	kind := newKind(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".ImportCertificateAuthorityCertificate") {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"__type":"com.amazonaws.acmpca#AccessDeniedException","message":"you may not"}`))
			return
		}
		server.ServeHTTP(w, r)
	}), "the-secret")
	_, err := kind.Establish(t.Context(), wanted(t, map[string]any{}))
	if err == nil || !strings.Contains(err.Error(), "AccessDeniedException: you may not") {
		t.Errorf("got %v", err)
	}
	for arn, status := range server.Authorities() {
		if status != "DELETED" {
			t.Errorf("%s is %s", arn, status)
		}
	}
	if !slices.Contains(server.Actions(), "DeleteCertificateAuthority") {
		t.Errorf("calls: %v", server.Actions())
	}
}

func TestWrongCredentials(t *testing.T) {
	kind := newKind(t, newServer(), "another-secret")
	_, err := kind.Establish(t.Context(), wanted(t, map[string]any{}))
	if err == nil || !strings.Contains(err.Error(), "InvalidSignatureException") || strings.Contains(err.Error(), "another-secret") {
		t.Errorf("got %v", err)
	}
}

func TestHostileAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer, want string
	}{
		"no ARN":   {`{"CertificateAuthorityArn":"x"}`, "is not the ARN of an authority"},
		"a path":   {`{"CertificateAuthorityArn":"arn:aws/../x:acm-pca:r:1:certificate-authority/1"}`, "is not the ARN of an authority"},
		"not JSON": {`<html>`, "cannot be read"},
		"huge":     {strings.Repeat(" ", 2<<20), "longer than"},
	} {
		kind := newKind(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(tt.answer)) }), "s")
		if _, err := kind.Establish(t.Context(), wanted(t, map[string]any{})); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}
