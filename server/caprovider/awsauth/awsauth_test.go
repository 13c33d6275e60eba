package awsauth_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
)

// The example of AWS's documentation of Signature Version 4.
func TestSign(t *testing.T) {
	req, err := http.NewRequest(http.MethodGet, "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	c := &awsauth.Credentials{KeyID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
	awsauth.Sign(req, nil, c, "iam", "us-east-1", time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC))
	want := "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, SignedHeaders=content-type;host;x-amz-date, " +
		"Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
	if got := req.Header.Get("Authorization"); got != want {
		t.Errorf("signed\n%s, want\n%s", got, want)
	}
}

func env(values map[string]string, c *http.Client) *awsauth.Environment {
	return &awsauth.Environment{Getenv: func(name string) string { return values[name] }, HTTP: c}
}

// metadata is a machine's and a container's metadata service.
func metadata(t *testing.T, expires time.Time, asked *int) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		credentials := func(id string) {
			*asked++
			fmt.Fprintf(w, `{"AccessKeyId":%q,"SecretAccessKey":"s","Token":"t","Expiration":%q}`, id, expires.Format(time.RFC3339))
		}
		switch {
		case r.URL.Path == "/latest/api/token" && r.Method == http.MethodPut && r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") != "":
			fmt.Fprint(w, "session")
		case strings.HasPrefix(r.URL.Path, "/latest/meta-data/") && r.Header.Get("X-Aws-Ec2-Metadata-Token") != "session":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/":
			fmt.Fprint(w, "mesh-role\n")
		case r.URL.Path == "/latest/meta-data/iam/security-credentials/mesh-role":
			credentials("instance")
		case r.URL.Path == "/latest/meta-data/placement/region":
			fmt.Fprint(w, "eu-north-1")
		case r.URL.Path == "/container" && r.Header.Get("Authorization") == "from-file":
			credentials("container")
		case r.URL.Path == "/huge":
			fmt.Fprint(w, strings.Repeat("x", 1<<20))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file := write("credentials", "# mine\n[default]\naws_access_key_id = file\naws_secret_access_key = s=1\n\n[other]\naws_access_key_id=other\naws_secret_access_key=s2\naws_session_token=t2\n")
	token := write("token", "from-file\n")
	asked := 0
	s := metadata(t, time.Now().Add(time.Hour), &asked)
	off := map[string]string{"AWS_EC2_METADATA_DISABLED": "true"}
	tests := []struct {
		name   string
		values map[string]string
		want   awsauth.Credentials
		err    string
	}{
		{"variables come first", map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "c", "AWS_SHARED_CREDENTIALS_FILE": file}, awsauth.Credentials{KeyID: "a", Secret: "b", Token: "c"}, ""},
		{"half of the variables", map[string]string{"AWS_ACCESS_KEY_ID": "a"}, awsauth.Credentials{}, "must be set together"},
		{"file", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file}, awsauth.Credentials{KeyID: "file", Secret: "s=1"}, ""},
		{"another profile", map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "other"}, awsauth.Credentials{KeyID: "other", Secret: "s2", Token: "t2"}, ""},
		{"container", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": s.URL + "/container", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": token}, awsauth.Credentials{KeyID: "container", Secret: "s", Token: "t"}, ""},
		{"container elsewhere", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://10.0.0.1/x"}, awsauth.Credentials{}, "must be HTTPS, or on the machine itself"},
		{"container without its token", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": s.URL + "/container"}, awsauth.Credentials{}, "status 404"},
		{"huge", map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": s.URL + "/huge"}, awsauth.Credentials{}, "longer than"},
		{"instance", map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": s.URL}, awsauth.Credentials{KeyID: "instance", Secret: "s", Token: "t"}, ""},
		{"nowhere", off, awsauth.Credentials{}, "there are no AWS credentials"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := env(tt.values, s.Client()).Credentials(t.Context())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, %v; want %q", got, err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.KeyID != tt.want.KeyID || got.Secret != tt.want.Secret || got.Token != tt.want.Token {
				t.Errorf("got %s, want %s", got.KeyID, tt.want.KeyID)
			}
		})
	}
}

func TestCredentialsAreKeptUntilTheyExpire(t *testing.T) {
	for _, tt := range []struct {
		life time.Duration
		want int
	}{{time.Hour, 1}, {time.Minute, 3}} {
		asked := 0
		s := metadata(t, time.Now().Add(tt.life), &asked)
		e := env(map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": s.URL}, s.Client())
		for range 3 {
			if _, err := e.Credentials(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if asked != tt.want {
			t.Errorf("valid for %v: asked %d times, want %d", tt.life, asked, tt.want)
		}
	}
}

func TestRegion(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte("[default]\nregion = a\n[profile x]\nregion=b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := 0
	s := metadata(t, time.Time{}, &asked)
	for _, tt := range []struct {
		values map[string]string
		want   string
	}{
		{map[string]string{"AWS_REGION": "r", "AWS_DEFAULT_REGION": "d"}, "r"},
		{map[string]string{"AWS_DEFAULT_REGION": "d"}, "d"},
		{map[string]string{"AWS_CONFIG_FILE": config}, "a"},
		{map[string]string{"AWS_CONFIG_FILE": config, "AWS_PROFILE": "x"}, "b"},
		{map[string]string{"AWS_EC2_METADATA_SERVICE_ENDPOINT": s.URL}, "eu-north-1"},
		{map[string]string{"AWS_EC2_METADATA_DISABLED": "true"}, ""},
	} {
		got, err := env(tt.values, s.Client()).Region(t.Context())
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%v: got %q, %v; want %q", tt.values, got, err, tt.want)
		}
	}
}

// Whatever a file of profiles has, a key of one section never comes from another.
func FuzzProfiles(f *testing.F) {
	f.Add("aws_access_key_id = mine\n")
	f.Add("[x]\naws_access_key_id=a\n[default\n")
	f.Add("\x00[default]]\r\n=\n")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "credentials")
		if strings.Contains(text, "[right]") {
			t.Skip()
		}
		if err := os.WriteFile(path, []byte("[right]\naws_access_key_id = right\naws_secret_access_key = s\n[wrong]\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := env(map[string]string{"AWS_SHARED_CREDENTIALS_FILE": path, "AWS_PROFILE": "right", "AWS_EC2_METADATA_DISABLED": "true"}, http.DefaultClient).Credentials(t.Context())
		if err == nil && got.KeyID != "right" && !strings.Contains(text, "right") {
			t.Errorf("key %q", got.KeyID)
		}
	})
}
