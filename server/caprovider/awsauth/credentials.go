package awsauth

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
)

// An Environment is where credentials are looked for.
type Environment struct {
	Getenv func(string) string
	HTTP   *http.Client // for the metadata services; it has a timeout

	mu   sync.Mutex // guards what follows
	kept *Credentials
}

// refreshBefore is how long before they expire credentials are replaced.
const refreshBefore = 5 * time.Minute

// errNoCredentials is returned where nothing gives credentials.
var errNoCredentials = errors.New("there are no AWS credentials: not in the environment, in a shared credentials file, at a container's endpoint, nor at the metadata service of an instance")

// Credentials returns those of the environment variables, the shared credentials file, the container or the instance,
// whichever has some first. They are kept until they are about to expire.
func (e *Environment) Credentials(ctx context.Context) (*Credentials, error) {
	e.mu.Lock()
	kept := e.kept
	e.mu.Unlock()
	if kept != nil && (kept.Expires.IsZero() || time.Until(kept.Expires) > refreshBefore) {
		return kept, nil
	}
	for _, source := range []func(context.Context) (*Credentials, error){e.fromVariables, e.fromFile, e.fromContainer, e.fromInstance} {
		c, err := source(ctx)
		if err != nil {
			return nil, err
		}
		if c != nil {
			e.mu.Lock()
			e.kept = c
			e.mu.Unlock()
			return c, nil
		}
	}
	return nil, errNoCredentials
}

// Region returns the region that is set, of the profile, or of the instance.
func (e *Environment) Region(ctx context.Context) (string, error) {
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if v := e.Getenv(name); v != "" {
			return v, nil
		}
	}
	section := e.profile()
	if section != "default" {
		section = "profile " + section
	}
	values, err := readProfile(e.path("AWS_CONFIG_FILE", "config"), section)
	if err != nil {
		return "", err
	}
	if v := values["region"]; v != "" {
		return v, nil
	}
	text, err := e.instance(ctx, "placement/region")
	if err != nil {
		return "", errors.New("there is no AWS region: set AWS_REGION")
	}
	return strings.TrimSpace(string(text)), nil
}

func (e *Environment) fromVariables(context.Context) (*Credentials, error) {
	c := &Credentials{KeyID: e.Getenv("AWS_ACCESS_KEY_ID"), Secret: e.Getenv("AWS_SECRET_ACCESS_KEY"), Token: e.Getenv("AWS_SESSION_TOKEN")}
	if c.KeyID == "" && c.Secret == "" {
		return nil, nil
	}
	if c.KeyID == "" || c.Secret == "" {
		return nil, errors.New("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY must be set together")
	}
	return c, nil
}

func (e *Environment) profile() string {
	if p := e.Getenv("AWS_PROFILE"); p != "" {
		return p
	}
	return "default"
}

// path is that of a file which a variable names, or in its usual place; "" when there is no home.
func (e *Environment) path(variable, name string) string {
	if p := e.Getenv(variable); p != "" {
		return p
	}
	if home := e.Getenv("HOME"); home != "" {
		return filepath.Join(home, ".aws", name)
	}
	return ""
}

func (e *Environment) fromFile(context.Context) (*Credentials, error) {
	values, err := readProfile(e.path("AWS_SHARED_CREDENTIALS_FILE", "credentials"), e.profile())
	if err != nil || values["aws_access_key_id"] == "" {
		return nil, err
	}
	return &Credentials{KeyID: values["aws_access_key_id"], Secret: values["aws_secret_access_key"], Token: values["aws_session_token"]}, nil
}

// maxProfiles bounds a file of profiles.
const maxProfiles = 1 << 20

// readProfile reads one section of a file of profiles. A file that is not there has none.
func readProfile(path, section string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, in := map[string]string{}, false
	lines := bufio.NewScanner(io.LimitReader(f, maxProfiles))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		if name, ok := strings.CutPrefix(line, "["); ok {
			name, _, _ = strings.Cut(name, "]")
			in = strings.TrimSpace(name) == section
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && in {
			out[strings.ToLower(strings.TrimSpace(key))] = strings.TrimSpace(value)
		}
	}
	if lines.Err() != nil {
		return nil, fmt.Errorf("read AWS profiles %s: it has a line that is too long", path)
	}
	return out, nil
}

// containerEndpoint is where a container asks for its role.
const containerEndpoint = "http://169.254.170.2"

func (e *Environment) fromContainer(ctx context.Context) (*Credentials, error) {
	address := e.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
	if path := e.Getenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); path != "" {
		address = containerEndpoint + path
	} else if address == "" {
		return nil, nil
	} else if err := checkEndpoint(address); err != nil {
		return nil, err
	}
	header := http.Header{}
	token := e.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")
	if file := e.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		token = strings.TrimSpace(string(text))
	}
	if token != "" {
		header.Set("Authorization", token)
	}
	text, err := Get(ctx, e.HTTP, address, header)
	if err != nil {
		return nil, fmt.Errorf("AWS credentials of the container: %w", err)
	}
	return decode(text)
}

// checkEndpoint refuses to ask for credentials in the clear beyond the machine.
func checkEndpoint(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("AWS_CONTAINER_CREDENTIALS_FULL_URI is no URL")
	}
	if u.Scheme == "https" {
		return nil
	}
	ip, err := netip.ParseAddr(u.Hostname())
	allowed := err == nil && (ip.IsLoopback() || ip == netip.MustParseAddr("169.254.170.2") || ip == netip.MustParseAddr("169.254.170.23") || ip == netip.MustParseAddr("fd00:ec2::23"))
	if u.Scheme != "http" || !allowed && u.Hostname() != "localhost" {
		return errors.New("AWS_CONTAINER_CREDENTIALS_FULL_URI must be HTTPS, or on the machine itself")
	}
	return nil
}

func decode(text []byte) (*Credentials, error) {
	var c struct {
		AccessKeyID     string `json:"AccessKeyId"`
		SecretAccessKey string
		Token           string
		Expiration      time.Time
	}
	if err := json.Unmarshal(text, &c); err != nil || c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return nil, errors.New("there are no AWS credentials in the answer")
	}
	return &Credentials{c.AccessKeyID, c.SecretAccessKey, c.Token, c.Expiration}, nil
}

// instanceEndpoint is the metadata service of an instance.
const instanceEndpoint = "http://169.254.169.254"

// instance asks the metadata service of an instance, version 2.
func (e *Environment) instance(ctx context.Context, path string) ([]byte, error) {
	if strings.EqualFold(e.Getenv("AWS_EC2_METADATA_DISABLED"), "true") {
		return nil, errNoCredentials
	}
	base := instanceEndpoint
	if v := e.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT"); v != "" {
		base = strings.TrimSuffix(v, "/")
	}
	token, err := ask(ctx, e.HTTP, http.MethodPut, base+"/latest/api/token", http.Header{"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": {"300"}})
	if err != nil {
		return nil, err
	}
	return Get(ctx, e.HTTP, base+"/latest/meta-data/"+path, http.Header{"X-Aws-Ec2-Metadata-Token": {string(token)}})
}

func (e *Environment) fromInstance(ctx context.Context) (*Credentials, error) {
	const folder = "iam/security-credentials/"
	roles, err := e.instance(ctx, folder)
	if err != nil {
		return nil, errNoCredentials
	}
	role, _, _ := strings.Cut(strings.TrimSpace(string(roles)), "\n")
	if role == "" {
		return nil, errors.New("the instance has no role at AWS")
	}
	text, err := e.instance(ctx, folder+url.PathEscape(strings.TrimSpace(role)))
	if err != nil {
		return nil, fmt.Errorf("AWS credentials of the instance: %w", err)
	}
	return decode(text)
}

// maxMetadata bounds an answer of a metadata service.
const maxMetadata = 64 << 10

// Get asks a metadata service. Its errors do not repeat the answer, which may have secrets.
func Get(ctx context.Context, c *http.Client, address string, header http.Header) ([]byte, error) {
	return ask(ctx, c, http.MethodGet, address, header)
}

func ask(ctx context.Context, c *http.Client, method, address string, header http.Header) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, errors.New("the address of a metadata service is no URL")
	}
	req.Header = header.Clone()
	answer, err := fetch.Do(c, req, maxMetadata)
	if err != nil {
		return nil, err
	}
	if answer.Status != http.StatusOK {
		return nil, fmt.Errorf("the metadata service answers with status %d", answer.Status)
	}
	return answer.Body, nil
}
