// Package kubernetes checks tokens of service accounts by asking the API server of their cluster (spec/acl.md section
// 9.2).
package kubernetes

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/oidc"
)

// A Config says which API server is asked. All is required.
type Config struct {
	Host              string // URL of the API server; without a scheme it is https
	CACert            string // PEM: what signed its certificate
	ServiceAccountJWT string // of an account that may review tokens and read service accounts; a secret
}

// An Account is a service account whose token was good.
type Account struct {
	Namespace string
	Name      string // or what its annotation says
	UID       string
}

// nameAnnotation gives a service account another name.
const nameAnnotation = "consul.hashicorp.com/service-name"

// maxAnswer bounds what the API server answers, in bytes.
const maxAnswer = 1 << 20

// A Validator checks tokens. It is safe for concurrent use.
type Validator struct {
	conf   Config
	host   string // scheme and host, without a slash at the end
	client *http.Client
}

// New checks the configuration. It reaches nothing.
func New(conf Config, way fetch.Way) (*Validator, error) {
	if conf.Host == "" {
		return nil, errors.New("Config.Host is required") //nolint:staticcheck // clients match the text
	}
	if conf.CACert == "" {
		return nil, errors.New("Config.CACert is required") //nolint:staticcheck // clients match the text
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(conf.CACert)) {
		return nil, errors.New("error parsing kubernetes ca cert: no certificate in PEM")
	}
	if conf.ServiceAccountJWT == "" {
		return nil, errors.New("Config.ServiceAccountJWT is required") //nolint:staticcheck // clients match the text
	}
	if err := oidc.CheckForm(conf.ServiceAccountJWT); err != nil {
		return nil, fmt.Errorf("Config.ServiceAccountJWT is not a valid JWT: %w", err) //nolint:staticcheck // clients match the text
	}
	host := conf.Host
	if !strings.Contains(host, "://") {
		host = "https://" + host
	}
	u, err := url.Parse(host)
	// The token of the method goes there, so never in plain text.
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("Config.Host is not the https URL of a host") //nolint:staticcheck // as the others
	}
	return &Validator{conf, strings.TrimSuffix(u.String(), "/"), way.Client(roots)}, nil
}

type tokenReview struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       struct {
		Token string `json:"token"`
	} `json:"spec"`
	Status struct {
		Authenticated bool   `json:"authenticated"`
		Error         string `json:"error,omitempty"`
		User          struct {
			Username string `json:"username,omitempty"`
			UID      string `json:"uid,omitempty"`
		} `json:"user"`
	} `json:"status"`
}

// dnsName is what Kubernetes allows as name of a namespace or a service account.
var dnsName = regexp.MustCompile(`^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$`)

// Login checks a token. The errors are those of the specification.
func (v *Validator) Login(ctx context.Context, bearer string) (*Account, error) {
	if _, err := oidc.Parse(bearer); err != nil {
		return nil, fmt.Errorf("failed to parse and validate JWT: %w", err)
	}
	a, err := v.review(ctx, bearer)
	if err != nil {
		return nil, fmt.Errorf("lookup failed: %w", err)
	}
	if err := v.annotation(ctx, a); err != nil {
		return nil, fmt.Errorf("annotation lookup failed: %w", err)
	}
	return a, nil
}

// review asks whose token it is.
func (v *Validator) review(ctx context.Context, bearer string) (*Account, error) {
	var review tokenReview
	review.APIVersion, review.Kind = "authentication.k8s.io/v1", "TokenReview"
	review.Spec.Token = bearer
	body, err := json.Marshal(review)
	if err != nil {
		return nil, err
	}
	review = tokenReview{}
	if err := v.ask(ctx, http.MethodPost, "/apis/authentication.k8s.io/v1/tokenreviews", body, &review); err != nil {
		return nil, err
	}
	st := review.Status
	if st.Error != "" {
		return nil, fmt.Errorf("%.500s", st.Error)
	}
	if !st.Authenticated {
		return nil, errors.New("service account jwt not valid")
	}
	parts := strings.Split(st.User.Username, ":")
	if len(parts) != 4 {
		return nil, errors.New("unexpected username format")
	}
	if parts[0] != "system" || parts[1] != "serviceaccount" {
		return nil, errors.New("username returned is not a service account")
	}
	// Both become part of a path.
	if !dnsName.MatchString(parts[2]) || !dnsName.MatchString(parts[3]) {
		return nil, errors.New("unexpected username format")
	}
	return &Account{parts[2], parts[3], st.User.UID}, nil
}

// annotation gives the account the name that its annotation says.
func (v *Validator) annotation(ctx context.Context, a *Account) error {
	var account struct {
		Metadata struct {
			UID         string            `json:"uid"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	if err := v.ask(ctx, http.MethodGet, "/api/v1/namespaces/"+a.Namespace+"/serviceaccounts/"+a.Name, nil, &account); err != nil {
		return err
	}
	if uid := account.Metadata.UID; uid != "" && a.UID != "" && uid != a.UID {
		return errors.New("the service account is no longer the one that the token was made for")
	}
	if name := account.Metadata.Annotations[nameAnnotation]; name != "" {
		a.Name = name
	}
	return nil
}

// ask calls the API server with the token of the method. Errors tell the status alone: what the server says is for
// those who may ask it.
func (v *Validator) ask(ctx context.Context, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, v.host+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+v.conf.ServiceAccountJWT)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	a, err := fetch.Do(v.client, req, maxAnswer)
	if err != nil {
		return err
	}
	if a.Status != http.StatusOK && a.Status != http.StatusCreated {
		return fmt.Errorf("the API server answers with status %d", a.Status)
	}
	if err := json.Unmarshal(a.Body, out); err != nil {
		return errors.New("the API server's answer is not the JSON expected")
	}
	return nil
}
