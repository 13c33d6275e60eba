package awsiam_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/server/authmethod/awsiam"
)

var way = fetch.Way{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}}

const (
	accessKey = "AKIDEXAMPLE"
	secretKey = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	formType  = "application/x-www-form-urlencoded; charset=utf-8"
)

// signature computes that of AWS, version 4, of a POST to the root.
func signature(service string, header map[string]string, signed []string, body string) string {
	var canonical strings.Builder
	canonical.WriteString("POST\n/\n\n")
	for _, name := range signed {
		fmt.Fprintf(&canonical, "%s:%s\n", name, strings.Join(strings.Fields(header[name]), " "))
	}
	fmt.Fprintf(&canonical, "\n%s\n%x", strings.Join(signed, ";"), sha256.Sum256([]byte(body)))
	date := header["x-amz-date"]
	scope := date[:8] + "/us-east-1/" + service + "/aws4_request"
	text := fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", date, scope, sha256.Sum256([]byte(canonical.String())))
	key := []byte("AWS4" + secretKey)
	for _, part := range append(strings.Split(scope, "/"), text) {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(part))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key)
}

// A signedRequest is what a client makes. Its headers have lower-case names.
type signedRequest struct {
	service, url, body string
	header             map[string]string
	unsigned           []string // headers that the signature leaves out
}

func newRequest(service, at, body string) *signedRequest {
	u, _ := url.Parse(at)
	return &signedRequest{service: service, url: at, body: body, header: map[string]string{
		"host": u.Host, "content-type": formType, "content-length": fmt.Sprint(len(body)),
		"x-amz-date": "20260101T000000Z", "x-amz-security-token": "session", "user-agent": "test/1.0",
	}}
}

// headers signs and returns all headers as Go would write them in JSON.
func (r *signedRequest) headers() string {
	signed := slices.Sorted(maps.Keys(r.header))
	signed = slices.DeleteFunc(signed, func(name string) bool { return slices.Contains(r.unsigned, name) })
	all := map[string][]string{"Authorization": {fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s/us-east-1/%s/aws4_request, SignedHeaders=%s, Signature=%s",
		accessKey, r.header["x-amz-date"][:8], r.service, strings.Join(signed, ";"), signature(r.service, r.header, signed, r.body))}}
	for name, value := range r.header {
		all[http.CanonicalHeaderKey(name)] = []string{value}
	}
	b, _ := json.Marshal(all)
	return string(b)
}

func (r *signedRequest) bearer() string {
	b, _ := json.Marshal(map[string]string{
		"iam_http_request_method": "POST",
		"iam_request_url":         base64.StdEncoding.EncodeToString([]byte(r.url)),
		"iam_request_headers":     base64.StdEncoding.EncodeToString([]byte(r.headers())),
		"iam_request_body":        base64.StdEncoding.EncodeToString([]byte(r.body)),
	})
	return string(b)
}

// with puts a request for the entity into the headers.
func (r *signedRequest) with(entity *signedRequest) *signedRequest {
	r.header["x-consul-iam-getentity-method"] = "POST"
	r.header["x-consul-iam-getentity-url"] = entity.url
	r.header["x-consul-iam-getentity-headers"] = entity.headers()
	r.header["x-consul-iam-getentity-body"] = entity.body
	return r
}

// aws stands in for STS and IAM. It checks signatures.
type aws struct {
	*httptest.Server
	mu      sync.Mutex
	asked   []string // actions
	headers http.Header
	fail    int // so many answers with status 503 first

	identity, role, user string // answers
	status               int    // 200
}

const (
	assumed = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>
<Arn>arn:aws:sts::123456789012:assumed-role/web/i-0abc</Arn><UserId>AROAEXAMPLE:i-0abc</UserId><Account>123456789012</Account>
</GetCallerIdentityResult><ResponseMetadata><RequestId>x</RequestId></ResponseMetadata></GetCallerIdentityResponse>`
	person = `<?xml version="1.0"?>
<GetCallerIdentityResponse><GetCallerIdentityResult>
<Arn>arn:aws:iam::123456789012:user/eng/bob</Arn><UserId>AIDAEXAMPLE</UserId><Account>123456789012</Account>
</GetCallerIdentityResult></GetCallerIdentityResponse>`
	role = `<GetRoleResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><GetRoleResult><Role>
<Path>/svc/</Path><Arn>arn:aws:iam::123456789012:role/svc/web</Arn><RoleName>web</RoleName><RoleId>AROAEXAMPLE</RoleId>
<Tags><member><Key>team</Key><Value>Blue</Value></member><member><Key>secret</Key><Value>x</Value></member></Tags>
</Role></GetRoleResult></GetRoleResponse>`
	user = `<GetUserResponse><GetUserResult><User><UserName>bob</UserName>
<Path>/eng/</Path><Arn>arn:aws:iam::123456789012:user/eng/bob</Arn><UserId>AIDAEXAMPLE</UserId></User></GetUserResult></GetUserResponse>`
)

func newAWS(t *testing.T) *aws {
	a := &aws{identity: assumed, role: role, user: user, status: 200}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		a.mu.Lock()
		defer a.mu.Unlock()
		action := form.Get("Action")
		a.asked, a.headers = append(a.asked, action), r.Header
		if a.fail > 0 {
			a.fail--
			w.WriteHeader(503)
			return
		}
		header := map[string]string{"host": r.Host, "content-length": fmt.Sprint(r.ContentLength)}
		for name, values := range r.Header {
			header[strings.ToLower(name)] = strings.Join(values, ",")
		}
		auth := header["authorization"]
		_, signed, _ := strings.Cut(auth, "SignedHeaders=")
		signed, got, _ := strings.Cut(signed, ", Signature=")
		service := "iam"
		if action == "GetCallerIdentity" {
			service = "sts"
		}
		if r.Method != "POST" || r.URL.String() != "/" || got != signature(service, header, strings.Split(signed, ";"), string(body)) {
			w.WriteHeader(403)
			_, _ = io.WriteString(w, `<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code><Message>topsecret</Message></Error></ErrorResponse>`)
			return
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, map[string]string{"GetCallerIdentity": a.identity, "GetRole": a.role, "GetUser": a.user}[action])
	}))
	t.Cleanup(a.Close)
	return a
}

const (
	identityBody = "Action=GetCallerIdentity&Version=2011-06-15"
	roleBody     = "Action=GetRole&RoleName=web&Version=2010-05-08"
	userBody     = "Action=GetUser&UserName=bob&Version=2010-05-08"
)

func (a *aws) caller() *signedRequest         { return newRequest("sts", a.URL+"/", identityBody) }
func (a *aws) entity(b string) *signedRequest { return newRequest("iam", a.URL, b) }

func (a *aws) validator(t *testing.T, conf awsiam.Config) *awsiam.Validator {
	t.Helper()
	conf.STSEndpoint, conf.IAMEndpoint = a.URL, a.URL
	v, err := awsiam.New(conf, way)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestConfigErrors(t *testing.T) {
	const invalid = "Invalid principal ARN: "
	good := "arn:aws:iam::123456789012:role/web"
	one := func(arn string, details bool) awsiam.Config {
		return awsiam.Config{BoundIAMPrincipalARNs: []string{good, arn}, EnableIAMEntityDetails: details}
	}
	tests := []struct {
		name string
		conf awsiam.Config
		want string // empty for none
	}{
		{"none", awsiam.Config{}, "BoundIAMPrincipalARNs is required and must have at least 1 entry"},
		{"role", one("arn:aws:iam::123456789012:role/path/web", false), ""},
		{"user of China", one("arn:aws-cn:iam::123456789012:user/web", false), ""},
		{"session", one("arn:aws:sts::123456789012:assumed-role/web/i-1", false), ""},
		{"word", one("web", false), invalid + `"web"`},
		{"empty", one("", false), invalid + `""`},
		{"bucket", one("arn:aws:s3:::bucket", false), invalid + `"arn:aws:s3:::bucket"`},
		{"group", one("arn:aws:iam::123456789012:group/x", false), invalid},
		{"no account", one("arn:aws:iam:::role/x", false), invalid},
		{"region", one("arn:aws:iam:us-east-1:123456789012:role/x", false), invalid},
		{"no name", one("arn:aws:iam::123456789012:role/path/", false), invalid},
		{"wildcard without details", one(good+"*", false), "Must set EnableIAMEntityDetails=true to use wildcards in BoundIAMPrincipalARNs"},
		{"wildcard", one("arn:aws:iam::123456789012:role/svc/*", true), ""},
		{"whole account", one("arn:aws:iam::123456789012:*", true), ""},
		{"two wildcards", one("arn:aws:iam::123456789012:role/*/*", true), "Only one wildcard is allowed at the end of the bound IAM principal ARN"},
		{"wildcard within", one("arn:aws:iam::123456789012:role/*/x", true), "Only one wildcard is allowed at the end of the bound IAM principal ARN"},
		{"every account", one("arn:aws:iam::*", true), invalid + `"arn:aws:iam::*"`},
		{"part of an account", one("arn:aws:iam::12345678901*", true), invalid},
		{"everything", one("*", true), invalid + `"*"`},
		{"tags without details", awsiam.Config{BoundIAMPrincipalARNs: []string{good}, IAMEntityTags: []string{"x"}}, "Must set EnableIAMEntityDetails=true to use IAMEntityTags"},
		{"endpoint", awsiam.Config{BoundIAMPrincipalARNs: []string{good}, STSEndpoint: "file:///etc/passwd"}, "STSEndpoint is not the URL of a host"},
		{"endpoint of IAM", awsiam.Config{BoundIAMPrincipalARNs: []string{good}, IAMEndpoint: "https://u:p@x"}, "IAMEndpoint is not the URL of a host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := awsiam.New(tt.conf, way)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLogin(t *testing.T) {
	const account = "arn:aws:iam::123456789012:"
	tests := []struct {
		name     string
		identity string
		entity   string // body of the request for it; empty for none
		conf     awsiam.Config
		want     awsiam.Principal
		err      string
	}{
		{"role", assumed, "", awsiam.Config{BoundIAMPrincipalARNs: []string{account + "role/x", account + "role/web"}}, awsiam.Principal{Name: "web", ID: "AROAEXAMPLE", Account: "123456789012"}, ""},
		{"session", assumed, "", awsiam.Config{BoundIAMPrincipalARNs: []string{"arn:aws:sts::123456789012:assumed-role/web/i-0abc"}}, awsiam.Principal{Name: "web", ID: "AROAEXAMPLE", Account: "123456789012"}, ""},
		{"another session", assumed, "", awsiam.Config{BoundIAMPrincipalARNs: []string{"arn:aws:sts::123456789012:assumed-role/web/i-1"}}, awsiam.Principal{}, "IAM principal arn:aws:iam::123456789012:role/web is not trusted"},
		{"user", person, "", awsiam.Config{BoundIAMPrincipalARNs: []string{account + "user/bob"}}, awsiam.Principal{Name: "bob", ID: "AIDAEXAMPLE", Account: "123456789012"}, ""},
		{"not a role of that name", person, "", awsiam.Config{BoundIAMPrincipalARNs: []string{account + "role/bob"}}, awsiam.Principal{}, "IAM principal arn:aws:iam::123456789012:user/bob is not trusted"},
		{"another account", assumed, "", awsiam.Config{BoundIAMPrincipalARNs: []string{"arn:aws:iam::210987654321:role/web"}}, awsiam.Principal{}, "IAM principal arn:aws:iam::123456789012:role/web is not trusted"},
		{"details of a role", assumed, roleBody, awsiam.Config{BoundIAMPrincipalARNs: []string{account + "role/svc/web"}, EnableIAMEntityDetails: true, IAMEntityTags: []string{"team", "none"}}, awsiam.Principal{Name: "web", ID: "AROAEXAMPLE", Account: "123456789012", Path: "/svc/", Tags: map[string]string{"team": "Blue"}}, ""},
		{"details of a user", person, userBody, awsiam.Config{BoundIAMPrincipalARNs: []string{account + "user/eng/*"}, EnableIAMEntityDetails: true}, awsiam.Principal{Name: "bob", ID: "AIDAEXAMPLE", Account: "123456789012", Path: "/eng/", Tags: map[string]string{}}, ""},
		{"details need the path", assumed, roleBody, awsiam.Config{BoundIAMPrincipalARNs: []string{account + "role/web"}, EnableIAMEntityDetails: true}, awsiam.Principal{}, "IAM principal arn:aws:iam::123456789012:role/svc/web is not trusted"},
		{"wildcard elsewhere", assumed, roleBody, awsiam.Config{BoundIAMPrincipalARNs: []string{account + "role/svc/x*"}, EnableIAMEntityDetails: true}, awsiam.Principal{}, "IAM principal arn:aws:iam::123456789012:role/svc/web is not trusted"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWS(t)
			a.identity = tt.identity
			r := a.caller()
			if tt.entity != "" {
				r = r.with(a.entity(tt.entity))
			}
			got, err := a.validator(t, tt.conf).Login(t.Context(), r.bearer())
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(&tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

var trusted = awsiam.Config{BoundIAMPrincipalARNs: []string{"arn:aws:iam::123456789012:role/web"}}

// Class 13, request forgery by the server: the server sends nothing but the questions who the client is, to nobody but
// AWS.
func TestThreat13OnlyQuestionsToAWSAreSent(t *testing.T) {
	const date = "&Version=2011-06-15"
	tests := []struct {
		name   string
		change func(r *signedRequest)
		want   string
	}{
		{"another action", func(r *signedRequest) { r.body = "Action=AssumeRole" + date }, `the action "AssumeRole" is not allowed`},
		{"action of the other service", func(r *signedRequest) { r.body = "Action=GetRole&RoleName=x" + date }, `the action "GetRole" is not allowed`},
		{"two actions", func(r *signedRequest) { r.body = identityBody + "&Action=GetFederationToken" }, `the body has "Action" more than once`},
		{"no action", func(r *signedRequest) { r.body = "" }, `the action "" is not allowed`},
		{"another parameter", func(r *signedRequest) { r.body = identityBody + "&Name=x" }, `the parameter "Name" is not allowed`},
		{"another version", func(r *signedRequest) { r.body = "Action=GetCallerIdentity&Version=2099-01-01" }, "the version of STS is not 2011-06-15"},
		{"bad form", func(r *signedRequest) { r.body = "Action=GetCallerIdentity;Action=x&%zz" }, "the body is not a form"},
		{"JSON", func(r *signedRequest) { r.header["content-type"] = "application/x-amz-json-1.1" }, "the header Content-Type is not that of a form"},
		{"target", func(r *signedRequest) { r.header["x-amz-target"] = "x" }, "the header X-Amz-Target is not allowed"},
		{"chunks", func(r *signedRequest) { r.header["transfer-encoding"] = "chunked" }, "the header Transfer-Encoding is not allowed"},
		{"upgrade", func(r *signedRequest) { r.header["connection"] = "upgrade" }, "the header Connection is not allowed"},
		{"line feed", func(r *signedRequest) { r.header["x-y"] = "a\r\nHost: evil" }, "a header is not valid"},
		{"blank in a name", func(r *signedRequest) { r.header["x y"] = "a" }, "a header is not valid"},
		{"another host header", func(r *signedRequest) { r.header["host"] = "evil.example" }, "the header Host is not the host of the URL"},
		{"another host", func(r *signedRequest) { r.url = "https://evil.example/" }, "the URL is not one of STS"},
		{"loopback", func(r *signedRequest) { r.url = "http://127.0.0.1:8500/" }, "the URL is not one of STS"},
		{"metadata of the machine", func(r *signedRequest) { r.url = "http://169.254.169.254/" }, "the URL is not one of STS"},
		{"plain text to AWS", func(r *signedRequest) { r.url = "http://sts.amazonaws.com/" }, "the URL is not one of STS"},
		{"another service of AWS", func(r *signedRequest) { r.url = "https://iam.amazonaws.com/" }, "the URL is not one of STS"},
		{"a bucket named sts", func(r *signedRequest) { r.url = "https://sts.s3.amazonaws.com/" }, "the URL is not one of STS"},
		{"a bucket named sts in a region", func(r *signedRequest) { r.url = "https://sts.s3-us-west-2.amazonaws.com/" }, "the URL is not one of STS"},
		{"a host that ends alike", func(r *signedRequest) { r.url = "https://sts.amazonaws.com.evil.example/" }, "the URL is not one of STS"},
		{"a host that begins alike", func(r *signedRequest) { r.url = "https://evil-sts.amazonaws.com/" }, "the URL is not one of STS"},
		{"dots of another kind", func(r *signedRequest) { r.url = "https://stsxamazonaws.com/" }, "the URL is not one of STS"},
		{"port", func(r *signedRequest) { r.url = "https://sts.amazonaws.com:8443/" }, "the URL is not one of STS"},
		{"credentials", func(r *signedRequest) { r.url = "https://sts.amazonaws.com@evil.example/" }, "the URL has more than a host"},
		{"path", func(r *signedRequest) { r.url += "x" }, "the URL has more than a host"},
		{"query", func(r *signedRequest) { r.url += "?Action=AssumeRole" }, "the URL has more than a host"},
		{"empty query", func(r *signedRequest) { r.url += "?" }, "the URL has more than a host"},
		{"fragment", func(r *signedRequest) { r.url += "#x" }, "the URL has more than a host"},
		{"no URL", func(r *signedRequest) { r.url = "\x00" }, "the URL is not valid"},
		{"host not signed", func(r *signedRequest) { r.unsigned = []string{"host"} }, "the header Host is not signed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWS(t)
			r := a.caller()
			tt.change(r)
			_, err := a.validator(t, trusted).Login(t.Context(), r.bearer())
			if err == nil || !strings.HasPrefix(err.Error(), "invalid bearer token: ") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if len(a.asked) > 0 {
				t.Errorf("AWS was asked %v", a.asked)
			}
		})
	}
}

// Without an endpoint the host of the token is asked, over TLS.
func TestHostsOfAWS(t *testing.T) {
	var dialled string
	v, err := awsiam.New(awsiam.Config{BoundIAMPrincipalARNs: trusted.BoundIAMPrincipalARNs, MaxRetries: -1}, fetch.Way{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialled = address
		return nil, errors.New("no network")
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"sts.amazonaws.com", "sts.us-east-1.amazonaws.com", "sts-fips.us-gov-west-1.amazonaws.com", "sts.cn-north-1.amazonaws.com.cn", "sts.ap-southeast-2.amazonaws.com"} {
		dialled = ""
		_, err := v.Login(t.Context(), newRequest("sts", "https://"+host, identityBody).bearer())
		if dialled != host+":443" || err == nil || !strings.HasPrefix(err.Error(), "error making a request to STS: ") {
			t.Errorf("%s: dialled %q, %v", host, dialled, err)
		}
	}
}

// With an endpoint it is the one that is asked, whatever host the client signed for.
func TestEndpointGetsWhatWasSigned(t *testing.T) {
	a := newAWS(t)
	r := newRequest("sts", "https://sts.eu-west-1.amazonaws.com/", identityBody)
	r.header["x-unsigned"] = "dropped"
	r.unsigned = []string{"x-unsigned"}
	if _, err := a.validator(t, trusted).Login(t.Context(), r.bearer()); err != nil {
		t.Error(err)
	}
	if a.headers.Get("X-Unsigned") != "" {
		t.Error("a header that was not signed was sent")
	}
	if a.headers.Get("X-Amz-Security-Token") != "session" || a.headers.Get("User-Agent") != "test/1.0" {
		t.Errorf("sent %v", a.headers)
	}
}

func TestBearerTokenErrors(t *testing.T) {
	a := newAWS(t)
	good := a.caller()
	change := func(key, value string) string {
		var m map[string]string
		_ = json.Unmarshal([]byte(good.bearer()), &m)
		m[key] = value
		b, _ := json.Marshal(m)
		return string(b)
	}
	headers := func(text string) string {
		return change("iam_request_headers", base64.StdEncoding.EncodeToString([]byte(text)))
	}
	for _, tt := range []struct{ name, raw, want string }{
		{"empty", "", "not the JSON expected"},
		{"no JSON", "x", "not the JSON expected"},
		{"list", "[]", "not the JSON expected"},
		{"huge", strings.Repeat(" ", 1<<20), "longer than 65536 bytes"},
		{"nothing", "{}", "iam_http_request_method must be POST"},
		{"GET", change("iam_http_request_method", "GET"), "iam_http_request_method must be POST"},
		{"URL not encoded", change("iam_request_url", good.url), "not base64"},
		{"no headers", change("iam_request_headers", ""), "the headers are not a JSON object"},
		{"headers are a list", headers("[]"), "the headers are not a JSON object"},
		{"not signed", headers("{}"), "the header Authorization is not a signature of AWS"},
		{"basic", headers(`{"Authorization":"Basic x"}`), "the header Authorization is not a signature of AWS"},
		{"value is a number", headers(`{"X":7}`), `the header "X" does not have one value`},
		{"two values", headers(`{"X":["a","b"]}`), `the header "X" does not have one value`},
		{"twice", headers(`{"Host":"a","host":"b"}`), `the header "Host" does not have one value`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := a.validator(t, trusted).Login(t.Context(), tt.raw)
			if err == nil || err.Error() != "invalid bearer token: "+tt.want {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	// Plain texts as values of headers are what other clients than Go's send.
	var plain map[string]any
	_ = json.Unmarshal([]byte(good.headers()), &plain)
	for k, v := range plain {
		plain[k] = v.([]any)[0]
	}
	b, _ := json.Marshal(plain)
	if _, err := a.validator(t, trusted).Login(t.Context(), headers(string(b))); err != nil {
		t.Error(err)
	}
}

func TestServerIDMustBeSigned(t *testing.T) {
	conf := trusted
	conf.ServerIDHeaderValue = "sarn.example"
	const refused = "invalid bearer token: the header X-Consul-IAM-ServerID is missing, not signed, or not that of this server"
	for _, tt := range []struct {
		name   string
		change func(r *signedRequest)
		good   bool
	}{
		{"signed", func(r *signedRequest) { r.header["x-consul-iam-serverid"] = "sarn.example" }, true},
		{"missing", func(*signedRequest) {}, false},
		{"for another server", func(r *signedRequest) { r.header["x-consul-iam-serverid"] = "other.example" }, false},
		{"added later", func(r *signedRequest) {
			r.header["x-consul-iam-serverid"] = "sarn.example"
			r.unsigned = []string{"x-consul-iam-serverid"}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWS(t)
			r := a.caller()
			tt.change(r)
			_, err := a.validator(t, conf).Login(t.Context(), r.bearer())
			if tt.good && err != nil || !tt.good && (err == nil || err.Error() != refused) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEntityMustBeTheCaller(t *testing.T) {
	conf := awsiam.Config{BoundIAMPrincipalARNs: []string{"arn:aws:iam::123456789012:*"}, EnableIAMEntityDetails: true}
	for _, tt := range []struct {
		name   string
		change func(a *aws, caller, entity *signedRequest) // before the entity's is put into the caller's
		after  func(caller *signedRequest)
		want   string
	}{
		{name: "same", want: ""},
		{name: "another ID", change: func(a *aws, _, _ *signedRequest) { a.role = strings.Replace(role, "AROAEXAMPLE", "AROAOTHER", 1) }, want: "the details are not those of the caller"},
		{name: "another name", change: func(a *aws, _, _ *signedRequest) { a.role = strings.Replace(role, "svc/web", "svc/admin", 1) }, want: "the details are not those of the caller"},
		{name: "another account", change: func(a *aws, _, _ *signedRequest) { a.role = strings.Replace(role, "123456789012", "210987654321", 1) }, want: "the details are not those of the caller"},
		{name: "a user of that ID", change: func(a *aws, _, e *signedRequest) {
			a.user = strings.NewReplacer("AIDAEXAMPLE", "AROAEXAMPLE").Replace(user)
			e.body = userBody
			e.header["content-length"] = fmt.Sprint(len(userBody))
		}, want: "the details are not those of the caller"},
		{name: "path contradicts", change: func(a *aws, _, _ *signedRequest) { a.role = strings.Replace(role, "<Path>/svc/", "<Path>/", 1) }, want: "the answer of IAM does not tell what the caller is"},
		{name: "two roles", change: func(a *aws, _, _ *signedRequest) {
			_, one, _ := strings.Cut(role, "<GetRoleResult>")
			one, _, _ = strings.Cut(one, "</GetRoleResult>")
			a.role = strings.Replace(role, one, one+one, 1)
		}, want: "the answer of IAM does not tell what the caller is"},
		{name: "another action", change: func(_ *aws, _, e *signedRequest) { e.body = "Action=ListRoles&Version=2010-05-08" }, want: `invalid bearer token: request for the entity: the action "ListRoles" is not allowed`},
		{name: "another host", change: func(_ *aws, _, e *signedRequest) { e.url = "https://iam.s3.amazonaws.com" }, want: "invalid bearer token: request for the entity: the URL is not one of IAM"},
		{name: "missing", after: func(c *signedRequest) { delete(c.header, "x-consul-iam-getentity-body") }, want: "invalid bearer token: the header X-Consul-IAM-GetEntity-Body is missing or not signed"},
		{name: "not signed", after: func(c *signedRequest) { c.unsigned = []string{"x-consul-iam-getentity-url"} }, want: "invalid bearer token: the header X-Consul-IAM-GetEntity-URL is missing or not signed"},
		{name: "GET", after: func(c *signedRequest) { c.header["x-consul-iam-getentity-method"] = "GET" }, want: "invalid bearer token: the header X-Consul-IAM-GetEntity-Method must be POST"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWS(t)
			c, e := a.caller(), a.entity(roleBody)
			if tt.change != nil {
				tt.change(a, c, e)
			}
			c = c.with(e)
			if tt.after != nil {
				tt.after(c)
			}
			_, err := a.validator(t, conf).Login(t.Context(), c.bearer())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || err.Error() != tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// An answer that has the wanted text somewhere, but is not the answer to the question, has been the way around such a
// check elsewhere.
func TestAnswersAreReadStrictly(t *testing.T) {
	const bad = "STS: the answer is not the XML expected"
	inner := strings.TrimSuffix(strings.TrimPrefix(assumed, "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">"), "</GetCallerIdentityResponse>")
	for _, tt := range []struct{ name, answer, want string }{
		{"JSON around it", `{"x":"` + assumed + `"}`, bad},
		{"text before", "x" + assumed, bad},
		{"text behind", assumed + "x", bad},
		{"twice", assumed + assumed, bad},
		{"another root", strings.ReplaceAll(assumed, "GetCallerIdentityResponse", "AssumeRoleResponse"), bad},
		{"deeper", "<GetCallerIdentityResponse><x>" + inner + "</x></GetCallerIdentityResponse>", "the answer of STS does not tell who the caller is"},
		{"declaration", "<!DOCTYPE x [<!ENTITY a 'b'>]>" + assumed, bad},
		{"two results", "<GetCallerIdentityResponse>" + inner + inner + "</GetCallerIdentityResponse>", "the answer of STS does not tell who the caller is"},
		{"cut off", assumed[:len(assumed)-5], bad},
		{"empty", "", bad},
		{"another account", strings.Replace(assumed, "<Account>1", "<Account>2", 1), "the answer of STS contradicts itself"},
		{"another session", strings.Replace(assumed, ":i-0abc</UserId>", ":x</UserId>", 1), "the answer of STS contradicts itself"},
		{"root user", strings.Replace(assumed, "arn:aws:sts::123456789012:assumed-role/web/i-0abc", "arn:aws:iam::123456789012:root", 1), `IAM principal "arn:aws:iam::123456789012:root" is not trusted: not the ARN of a user or a role`},
		{"huge", strings.Repeat(" ", 1<<20), "error making a request to STS: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAWS(t)
			a.identity = tt.answer
			conf := trusted
			conf.MaxRetries = -1
			_, err := a.validator(t, conf).Login(t.Context(), a.caller().bearer())
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestRetries(t *testing.T) {
	a := newAWS(t)
	a.fail = 2
	if _, err := a.validator(t, trusted).Login(t.Context(), a.caller().bearer()); err != nil || len(a.asked) != 3 {
		t.Errorf("%v after %v", err, a.asked)
	}
	a.fail, a.asked = 2, nil
	conf := trusted
	conf.MaxRetries = 1
	if _, err := a.validator(t, conf).Login(t.Context(), a.caller().bearer()); err == nil || err.Error() != "error making a request to STS: status 503" || len(a.asked) != 2 {
		t.Errorf("%v after %v", err, a.asked)
	}
	// What is refused is not asked for again, and told without what else AWS says.
	a.fail, a.asked = 0, nil
	r := a.caller()
	raw := strings.Replace(r.bearer(), base64.StdEncoding.EncodeToString([]byte(r.headers())), base64.StdEncoding.EncodeToString([]byte(strings.Replace(r.headers(), "test/1.0", "test/1.1", 1))), 1)
	if _, err := a.validator(t, trusted).Login(t.Context(), raw); err == nil || err.Error() != "STS refuses the request with status 403: SignatureDoesNotMatch" || len(a.asked) != 1 {
		t.Errorf("%v after %v", err, a.asked)
	}
}

func TestAllowedHeaders(t *testing.T) {
	a := newAWS(t)
	r := a.caller()
	r.header["x-amz-custom"] = "x"
	conf := trusted
	if _, err := a.validator(t, conf).Login(t.Context(), r.bearer()); err == nil || !strings.Contains(err.Error(), "the header X-Amz-Custom is not allowed") {
		t.Errorf("got %v", err)
	}
	conf.AllowedSTSHeaderValues = []string{"x-amz-custom"}
	if _, err := a.validator(t, conf).Login(t.Context(), r.bearer()); err != nil {
		t.Error(err)
	}
}
