// Package awsiam checks that a client is a user or a role of AWS (spec/acl.md section 9.3). The client signs a request
// that asks AWS who it is; the server sends it, so that AWS checks the signature and answers. The server needs no
// credentials of AWS, and the client does not give its own away.
package awsiam

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/pause"
)

// A Config says which users and roles are trusted.
type Config struct {
	// BoundIAMPrincipalARNs has at least one entry. Without details, paths are left out; with them, an entry has its
	// path, and may end with an asterisk.
	BoundIAMPrincipalARNs  []string
	EnableIAMEntityDetails bool     // the client also signs a request for the path and the tags
	IAMEntityTags          []string // that rules may see
	ServerIDHeaderValue    string   // what clients must sign, so that a request made for another server is no good
	MaxRetries             int      // of a request to AWS; default 2, negative none, at most 10
	IAMEndpoint            string   // URL instead of what the client says
	STSEndpoint            string
	AllowedSTSHeaderValues []string // X-Amz- headers allowed besides those that signatures need
}

// A Principal is a user or a role that is trusted.
type Principal struct {
	Name    string
	ID      string // unique, also among those of that name at other times
	Account string
	Path    string            // only with details
	Tags    map[string]string // only with details: those of IAMEntityTags that it has
}

const (
	defaultRetries = 2
	maxRetries     = 10
	firstWait      = 100 * time.Millisecond // before a retry, then twice as much
	maxTime        = 3 * fetch.Timeout      // of a login
	maxAnswer      = 128 << 10              // of AWS, in bytes
)

// A Validator checks signed requests. It is safe for concurrent use.
type Validator struct {
	conf     Config
	bounds   []bound
	sts, iam *service
	retries  int
	client   *http.Client
}

// New checks the configuration. It reaches nothing.
func New(conf Config, way fetch.Way) (*Validator, error) {
	v := &Validator{conf: conf, client: way.Client(nil), retries: min(conf.MaxRetries, maxRetries)}
	if v.retries == 0 {
		v.retries = defaultRetries
	}
	if len(conf.BoundIAMPrincipalARNs) == 0 {
		return nil, errors.New("BoundIAMPrincipalARNs is required and must have at least 1 entry")
	}
	if len(conf.IAMEntityTags) > 0 && !conf.EnableIAMEntityDetails {
		return nil, errors.New("Must set EnableIAMEntityDetails=true to use IAMEntityTags") //nolint:staticcheck // as the others
	}
	for _, text := range conf.BoundIAMPrincipalARNs {
		b, err := parseBound(text, conf.EnableIAMEntityDetails)
		if err != nil {
			return nil, err
		}
		v.bounds = append(v.bounds, b)
	}
	stsEndpoint, err := endpoint("STSEndpoint", conf.STSEndpoint)
	if err != nil {
		return nil, err
	}
	iamEndpoint, err := endpoint("IAMEndpoint", conf.IAMEndpoint)
	if err != nil {
		return nil, err
	}
	v.sts = &service{"STS", stsHost, "2011-06-15", stsEndpoint, map[string][]string{"GetCallerIdentity": nil}}
	v.iam = &service{"IAM", iamHost, "2010-05-08", iamEndpoint, map[string][]string{"GetRole": {"RoleName"}, "GetUser": {"UserName"}}}
	return v, nil
}

// endpoint reads a URL; nil for none.
func endpoint(name, text string) (*url.URL, error) {
	if text == "" {
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("%s is not the URL of a host", name)
	}
	return u, nil
}

// Login checks a bearer token.
func (v *Validator) Login(ctx context.Context, bearer string) (*Principal, error) {
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	callerRequest, entityRequest, err := v.parseBearer(bearer)
	if err != nil {
		return nil, err
	}

	var identity callerIdentity
	if err := v.ask(ctx, v.sts, callerRequest, "GetCallerIdentityResponse", &identity); err != nil {
		return nil, err
	}
	caller, id, err := identity.read()
	if err != nil {
		return nil, err
	}
	p := &Principal{Name: caller.name, ID: id, Account: caller.account}
	who := caller.canonical()
	if entityRequest != nil {
		var found entity
		if err := v.ask(ctx, v.iam, entityRequest, entityRequest.form.Get("Action")+"Response", &found); err != nil {
			return nil, err
		}
		entityID := ""
		if who, entityID, err = found.read(); err != nil {
			return nil, err
		}
		if entityID != id || who.canonical() != caller.canonical() {
			return nil, errors.New("the details are not those of the caller")
		}
		p.Path, p.Tags = who.path, found.tags(v.conf.IAMEntityTags)
	}
	for _, b := range v.bounds {
		if b.matches(who) || b.matches(caller) {
			return p, nil
		}
	}
	return nil, fmt.Errorf("IAM principal %s is not trusted", who)
}

// ask sends a request, again if AWS could not answer, and reads the answer.
func (v *Validator) ask(ctx context.Context, s *service, r *request, root string, out any) error {
	for n := 0; ; n++ {
		a, err := v.send(ctx, s, r)
		if err == nil && a.Status == http.StatusOK {
			if err := readXML(a.Body, root, out); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			return nil
		}
		if err == nil && a.Status < 500 && a.Status != http.StatusTooManyRequests {
			return fmt.Errorf("%s refuses the request with status %d%s", s.name, a.Status, errorCode(a.Body))
		}
		if n >= v.retries || ctx.Err() != nil {
			if err == nil {
				err = fmt.Errorf("status %d", a.Status)
			}
			return fmt.Errorf("error making a request to %s: %w", s.name, err)
		}
		pause.For(ctx, firstWait<<n)
	}
}

// send sends a request once: with the headers that are signed, and those of the signature.
func (v *Validator) send(ctx context.Context, s *service, r *request) (*fetch.Answer, error) {
	to := r.url
	if s.endpoint != nil {
		to = s.endpoint
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.Scheme+"://"+to.Host+"/", strings.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Host = r.url.Host
	for name, value := range r.header {
		if name == "Host" || name == "Content-Length" {
			continue // they follow from the request
		}
		if r.signed[name] || name == "Authorization" || name == "Content-Type" || strings.HasPrefix(name, "X-Amz-") {
			req.Header.Set(name, value)
		}
	}
	return fetch.Do(v.client, req, maxAnswer)
}

// readXML reads a document whose root has this name, and nothing else: an answer that only contains what is looked for
// somewhere is none.
func readXML(body []byte, root string, out any) error {
	bad := errors.New("the answer is not the XML expected")
	d := xml.NewDecoder(bytes.NewReader(body))
	begun := false
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && begun {
			return nil
		}
		if err != nil {
			return bad
		}
		switch t := t.(type) {
		case xml.ProcInst:
			if t.Target != "xml" || begun {
				return bad
			}
		case xml.CharData:
			if len(bytes.TrimSpace(t)) > 0 {
				return bad
			}
		case xml.StartElement:
			if begun || t.Name.Local != root || d.DecodeElement(out, &t) != nil {
				return bad
			}
			begun = true
		default:
			return bad
		}
	}
}

var errorCodeForm = regexp.MustCompile(`^[A-Za-z.]{1,64}$`)

// errorCode returns what AWS calls the error, for people.
func errorCode(body []byte) string {
	var e struct {
		Code string `xml:"Error>Code"`
	}
	if readXML(body, "ErrorResponse", &e) != nil || !errorCodeForm.MatchString(e.Code) {
		return ""
	}
	return ": " + e.Code
}

// A callerIdentity is what STS answers. Every element should be there once.
type callerIdentity struct {
	ARN     []string `xml:"GetCallerIdentityResult>Arn"`
	UserID  []string `xml:"GetCallerIdentityResult>UserId"`
	Account []string `xml:"GetCallerIdentityResult>Account"`
}

// read returns the caller with its unique ID.
func (c *callerIdentity) read() (arn, string, error) {
	text, ok1 := once(c.ARN)
	id, ok2 := once(c.UserID)
	account, ok3 := once(c.Account)
	if !ok1 || !ok2 || !ok3 {
		return arn{}, "", errors.New("the answer of STS does not tell who the caller is")
	}
	a, err := parseARN(text)
	if err != nil {
		return arn{}, "", fmt.Errorf("IAM principal %.200q is not trusted: %w", text, err)
	}
	// The ID of an assumed role goes on with the session.
	id, session, _ := strings.Cut(id, ":")
	if id == "" || account != a.account || session != a.session {
		return arn{}, "", errors.New("the answer of STS contradicts itself")
	}
	return a, id, nil
}

// An entity is what IAM answers about a role or a user.
type entity struct {
	Role []details `xml:"GetRoleResult>Role"`
	User []details `xml:"GetUserResult>User"`
}

type details struct {
	ARN    []string `xml:"Arn"`
	Path   []string `xml:"Path"`
	RoleID []string `xml:"RoleId"`
	UserID []string `xml:"UserId"`
	Tags   []struct {
		Key   string
		Value string
	} `xml:"Tags>member"`
}

// read returns the user or role with its unique ID.
func (e *entity) read() (arn, string, error) {
	bad := errors.New("the answer of IAM does not tell what the caller is")
	all, kind := slices.Concat(e.Role, e.User), "role"
	if len(all) != 1 {
		return arn{}, "", bad
	}
	ids := all[0].RoleID
	if len(e.User) == 1 {
		ids, kind = all[0].UserID, "user"
	}
	text, ok1 := once(all[0].ARN)
	path, ok2 := once(all[0].Path)
	id, ok3 := once(ids)
	if !ok1 || !ok2 || !ok3 {
		return arn{}, "", bad
	}
	a, err := parseARN(text)
	if err != nil || a.kind != kind || a.path != path {
		return arn{}, "", bad
	}
	return a, id, nil
}

// tags returns those that are wanted.
func (e *entity) tags(wanted []string) map[string]string {
	out := map[string]string{}
	for _, d := range slices.Concat(e.Role, e.User) {
		for _, t := range d.Tags {
			if slices.Contains(wanted, t.Key) {
				out[t.Key] = t.Value
			}
		}
	}
	return out
}

// once returns the only one of several elements.
func once(values []string) (string, bool) {
	if len(values) != 1 || values[0] == "" {
		return "", false
	}
	return values[0], true
}
