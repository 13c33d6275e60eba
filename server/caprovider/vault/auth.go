package vault

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
)

// A method is a way to log in.
type method struct {
	// login returns the path below the mount and the body of the request.
	login func(ctx context.Context, c *client, p *caprovider.Reader) (path string, body map[string]any, err error)
	// machine tells whether it uses something that only the machine has.
	machine func(p *caprovider.Reader) bool
}

// methods are those that need nothing but HTTP.
var methods = map[string]*method{
	"approle": {loginAppRole, func(p *caprovider.Reader) bool {
		return p.Text("role_id_file_path") != "" || p.Text("secret_id_file_path") != ""
	}},
	"kubernetes": {loginKubernetes, func(p *caprovider.Reader) bool { return p.Text("jwt") == "" }},
	"jwt":        {loginJWT, func(p *caprovider.Reader) bool { return p.Text("jwt") == "" }},
	"userpass":   {loginPassword, never},
	"ldap":       {loginPassword, never},
	"okta":       {loginPassword, never},
	"radius":     {loginPassword, never},
	"github":     {loginGitHub, never},
	"aws":        {loginAWS, always},
	"azure":      {loginAzure, always},
	"gcp":        {loginGCP, always},
}

func never(*caprovider.Reader) bool  { return false }
func always(*caprovider.Reader) bool { return true }

// notSupported are methods that exist and need more than HTTP.
var notSupported = []string{"alicloud", "cf", "kerberos", "oci"}

func methodNames() []string { return slices.Sorted(maps.Keys(methods)) }

// login gets a token.
func (c *client) login(ctx context.Context) (*tokenInfo, error) {
	m := c.s.auth
	path, body, err := methods[m.kind].login(ctx, c, m.param)
	if err == nil {
		err = m.param.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("log in to Vault by %s: %w", m.kind, err)
	}
	var reply struct {
		Auth struct {
			Token     string `json:"client_token"`
			Renewable bool   `json:"renewable"`
			Lease     int    `json:"lease_duration"`
		} `json:"auth"`
	}
	if err := c.do(ctx, request{method: http.MethodPost, namespace: c.s.namespace, path: "auth/" + m.mount + "/login" + path, body: body}, &reply); err != nil {
		return nil, fmt.Errorf("log in to Vault by %s: %w", m.kind, err)
	}
	if reply.Auth.Token == "" {
		return nil, fmt.Errorf("log in to Vault by %s: there is no token in the answer", m.kind)
	}
	return &tokenInfo{reply.Auth.Token, reply.Auth.Renewable, time.Duration(reply.Auth.Lease) * time.Second}, nil
}

// A tokenInfo is a token and how long it lives; 0 means without end.
type tokenInfo struct {
	token     string
	renewable bool
	ttl       time.Duration
}

// maxSecretFile bounds files with tokens and IDs.
const maxSecretFile = 64 << 10

func readSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecretFile+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxSecretFile {
		return "", fmt.Errorf("file %s is larger than %d bytes", path, maxSecretFile)
	}
	return strings.TrimSpace(string(text)), nil
}

// secret returns a parameter, or the content of the file that another parameter names, or of a default file.
func secret(p *caprovider.Reader, key, fileKey, defaultFile string) (string, error) {
	if v := p.Text(key); v != "" {
		return v, nil
	}
	path := first(p.Text(fileKey), defaultFile)
	if path == "" {
		return "", fmt.Errorf("there is no %s", key)
	}
	return readSecret(path)
}

func loginAppRole(_ context.Context, _ *client, p *caprovider.Reader) (string, map[string]any, error) {
	role, err := secret(p, "role_id", "role_id_file_path", "")
	if err != nil {
		return "", nil, err
	}
	body := map[string]any{"role_id": role}
	if p.Text("secret_id") != "" || p.Text("secret_id_file_path") != "" {
		if body["secret_id"], err = secret(p, "secret_id", "secret_id_file_path", ""); err != nil {
			return "", nil, err
		}
	}
	return "", body, nil
}

// serviceAccountToken is where a container finds the token of its service account.
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

func loginKubernetes(_ context.Context, _ *client, p *caprovider.Reader) (string, map[string]any, error) {
	role := p.Text("role")
	if role == "" {
		return "", nil, errors.New("there is no role")
	}
	token, err := secret(p, "jwt", "token_path", serviceAccountToken)
	return "", map[string]any{"role": role, "jwt": token}, err
}

func loginJWT(_ context.Context, _ *client, p *caprovider.Reader) (string, map[string]any, error) {
	token, err := secret(p, "jwt", "path", "")
	return "", map[string]any{"role": p.Text("role"), "jwt": token}, err
}

func loginPassword(_ context.Context, _ *client, p *caprovider.Reader) (string, map[string]any, error) {
	name, password := p.Text("username"), p.Text("password")
	if name == "" || password == "" {
		return "", nil, errors.New("there must be username and password")
	}
	return "/" + url.PathEscape(name), map[string]any{"password": password}, nil
}

func loginGitHub(_ context.Context, _ *client, p *caprovider.Reader) (string, map[string]any, error) {
	if p.Text("token") == "" {
		return "", nil, errors.New("there is no token")
	}
	return "", map[string]any{"token": p.Text("token")}, nil
}

// loginAWS proves an IAM identity by a signed request that Vault makes in its name.
func loginAWS(ctx context.Context, c *client, p *caprovider.Reader) (string, map[string]any, error) {
	if kind := p.Text("type"); kind != "" && kind != "iam" {
		return "", nil, fmt.Errorf("type %q is not supported, only iam", kind)
	}
	env := awsauth.Environment{Getenv: c.getenv, HTTP: c.metadata}
	credentials, err := env.Credentials(ctx)
	if err != nil {
		return "", nil, err
	}
	const content = "Action=GetCallerIdentity&Version=2011-06-15"
	region := first(p.Text("region"), "us-east-1")
	host := "sts.amazonaws.com"
	if region != "us-east-1" {
		host = "sts." + region + ".amazonaws.com"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+host+"/", strings.NewReader(content))
	if err != nil {
		return "", nil, errors.New("region is not one of AWS")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	if id := p.Text("header_value"); id != "" {
		req.Header.Set("X-Vault-AWS-IAM-Server-ID", id)
	}
	awsauth.Sign(req, []byte(content), credentials, "sts", region, time.Now())
	headers, err := json.Marshal(req.Header)
	if err != nil {
		return "", nil, err
	}
	encode := base64.StdEncoding.EncodeToString
	return "", map[string]any{
		"role": p.Text("role"), "iam_http_request_method": http.MethodPost, "iam_request_url": encode([]byte(req.URL.String())),
		"iam_request_body": encode([]byte(content)), "iam_request_headers": encode(headers),
	}, nil
}

// Addresses of the metadata services, which are plain HTTP within the machine.
const (
	azureMetadata  = "http://169.254.169.254/metadata"
	googleMetadata = "http://metadata.google.internal/computeMetadata/v1"
)

// loginAzure proves the managed identity of a virtual machine.
func loginAzure(ctx context.Context, c *client, p *caprovider.Reader) (string, map[string]any, error) {
	query := url.Values{"api-version": {"2018-02-01"}, "resource": {first(p.Text("resource"), "https://management.azure.com/")}}
	for _, key := range []string{"client_id", "object_id"} {
		if v := p.Text(key); v != "" {
			query.Set(key, v)
		}
	}
	header := http.Header{"Metadata": {"true"}}
	var token struct {
		Access string `json:"access_token"`
	}
	text, err := awsauth.Get(ctx, c.metadata, azureMetadata+"/identity/oauth2/token?"+query.Encode(), header)
	if err == nil {
		err = json.Unmarshal(text, &token)
	}
	if err != nil || token.Access == "" {
		return "", nil, errors.New("the machine has no managed identity that can be read")
	}
	var instance struct {
		Compute struct {
			Name          string `json:"name"`
			ResourceGroup string `json:"resourceGroupName"`
			Subscription  string `json:"subscriptionId"`
			ScaleSet      string `json:"vmScaleSetName"`
		} `json:"compute"`
	}
	text, err = awsauth.Get(ctx, c.metadata, azureMetadata+"/instance?api-version=2021-02-01", header)
	if err == nil {
		err = json.Unmarshal(text, &instance)
	}
	if err != nil {
		return "", nil, errors.New("the description of the machine cannot be read")
	}
	return "", map[string]any{
		"role": p.Text("role"), "jwt": token.Access, "subscription_id": instance.Compute.Subscription,
		"resource_group_name": instance.Compute.ResourceGroup, "vm_name": instance.Compute.Name, "vmss_name": instance.Compute.ScaleSet,
	}, nil
}

// loginGCP proves the identity of a Compute Engine instance.
func loginGCP(ctx context.Context, c *client, p *caprovider.Reader) (string, map[string]any, error) {
	if kind := p.Text("type"); kind != "" && kind != "gce" {
		return "", nil, fmt.Errorf("type %q is not supported, only gce", kind)
	}
	role, account := p.Text("role"), first(p.Text("service_account"), "default")
	if role == "" {
		return "", nil, errors.New("there is no role")
	}
	query := url.Values{"audience": {"http://vault/" + role}, "format": {"full"}}
	text, err := awsauth.Get(ctx, c.metadata,
		googleMetadata+"/instance/service-accounts/"+url.PathEscape(account)+"/identity?"+query.Encode(), http.Header{"Metadata-Flavor": {"Google"}})
	if err != nil {
		return "", nil, err
	}
	return "", map[string]any{"role": role, "jwt": strings.TrimSpace(string(text))}, nil
}
