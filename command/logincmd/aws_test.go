package logincmd

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/server/authmethod/awsiam"
)

const identity = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:sts::123456789012:assumed-role/web/i-1</Arn><UserId>AROAEXAMPLE:i-1</UserId><Account>123456789012</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>`

// proofOf makes a proof for an STS at the address.
func proofOf(t *testing.T, address string, entity bool) string {
	t.Helper()
	s := func(v string) *string { return &v }
	yes := true
	proof, err := awsProof{
		on: &yes, entity: &entity, endpoint: s(address), region: s("eu-west-1"), serverID: s("sarn.example.com"),
		keyID: s("AKIAEXAMPLE"), secret: s("the-secret-key"), sessionID: s("session"),
	}.token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(proof, "the-secret-key") {
		t.Error("the proof has the secret key")
	}
	return proof
}

// What the command signs is what the servers' auth method sends on to STS, and takes for the role.
func TestAWSProofIsWhatTheServersExpect(t *testing.T) {
	var seen http.Header
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Clone()
		io.WriteString(w, identity)
	}))
	defer sts.Close()
	conf := awsiam.Config{BoundIAMPrincipalARNs: []string{"arn:aws:iam::123456789012:role/web"}, ServerIDHeaderValue: "sarn.example.com", STSEndpoint: sts.URL}
	way := fetch.Way{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if strings.HasPrefix(address, "iam.") {
			return nil, io.ErrUnexpectedEOF
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	v, err := awsiam.New(conf, way)
	if err != nil {
		t.Fatal(err)
	}
	p, err := v.Login(t.Context(), proofOf(t, sts.URL, false))
	if err != nil || p.Name != "web" || p.Account != "123456789012" {
		t.Fatalf("%+v, %v", p, err)
	}
	if !strings.Contains(seen.Get("Authorization"), "Credential=AKIAEXAMPLE/") || !strings.Contains(seen.Get("Authorization"), "/eu-west-1/sts/aws4_request") ||
		seen.Get("X-Amz-Security-Token") != "session" {
		t.Errorf("STS was sent %v", seen)
	}

	conf.EnableIAMEntityDetails, conf.MaxRetries = true, 1
	if v, err = awsiam.New(conf, way); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Login(t.Context(), proofOf(t, sts.URL, false)); err == nil || !strings.Contains(err.Error(), "GetEntity") {
		t.Errorf("without the entity: %v", err)
	}
	// With the entity everything is as it must be, up to where IAM would be asked.
	if _, err := v.Login(t.Context(), proofOf(t, sts.URL, true)); err == nil || strings.Contains(err.Error(), "invalid bearer token") {
		t.Errorf("with the entity: %v", err)
	}
}

func TestEntityRequests(t *testing.T) {
	for arn, want := range map[string]string{
		"arn:aws:sts::1:assumed-role/web/i-1":   "Action=GetRole&RoleName=web&Version=2010-05-08",
		"arn:aws:iam::1:user/path/to/jane":      "Action=GetUser&UserName=jane&Version=2010-05-08",
		"arn:aws:iam::1:root":                   "",
		"arn:aws:sts::1:federated-user/jane":    "",
		"nonsense":                              "",
		"arn:aws:sts::1:assumed-role/a&b=c/i-1": "Action=GetRole&RoleName=a%26b%3Dc&Version=2010-05-08",
	} {
		if got, err := entityRequest(arn); got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", arn, got, err)
		}
	}
}
