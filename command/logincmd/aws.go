package logincmd

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
)

// awsProof are the flags for a proof of identity that is a signed request to AWS (spec/acl.md section 9.3).
type awsProof struct {
	on, entity                                           *bool
	endpoint, region, serverID, keyID, secret, sessionID *string
}

func awsFlags(f *flag.FlagSet) awsProof {
	return awsProof{
		on:        f.Bool("aws-auto-bearer-token", false, "the proof is a request to AWS, signed with the credentials of this machine, instead of -bearer-token-file"),
		entity:    f.Bool("aws-include-entity", false, "sign a request for the details of the role or user too"),
		endpoint:  f.String("aws-sts-endpoint", "", "`URL` of STS; default that of the region"),
		region:    f.String("aws-region", "", "`name` of the region; default that of the environment"),
		serverID:  f.String("aws-server-id-header-value", "", "`text` that the auth method asks for"),
		keyID:     f.String("aws-access-key-id", "", "`ID` of an access key; default the credentials of the environment"),
		secret:    f.String("aws-secret-access-key", "", "its `secret`; the environment is a better place for it"),
		sessionID: f.String("aws-session-token", "", "its session `token`, if it has one"),
	}
}

// given returns the name of a flag that says something about the proof, empty if none does.
func (p awsProof) given() string {
	if *p.entity {
		return "aws-include-entity"
	}
	for name, v := range map[string]*string{
		"aws-sts-endpoint": p.endpoint, "aws-region": p.region, "aws-server-id-header-value": p.serverID,
		"aws-access-key-id": p.keyID, "aws-secret-access-key": p.secret, "aws-session-token": p.sessionID,
	} {
		if *v != "" {
			return name
		}
	}
	return ""
}

const (
	formType   = "application/x-www-form-urlencoded; charset=utf-8"
	callerBody = "Action=GetCallerIdentity&Version=2011-06-15"
	iamURL     = "https://iam.amazonaws.com/" // IAM is global; it signs for us-east-1
	iamRegion  = "us-east-1"
	awsTimeout = 10 * time.Second
	maxAnswer  = 64 << 10
)

// token makes the proof.
func (p awsProof) token(ctx context.Context) (string, error) {
	client := &http.Client{Timeout: awsTimeout}
	env := &awsauth.Environment{Getenv: os.Getenv, HTTP: client}
	creds := &awsauth.Credentials{KeyID: *p.keyID, Secret: *p.secret, Token: *p.sessionID}
	var err error
	switch {
	case *p.keyID == "" && *p.secret == "":
		if creds, err = env.Credentials(ctx); err != nil {
			return "", err
		}
	case *p.keyID == "" || *p.secret == "":
		return "", errors.New("-aws-access-key-id and -aws-secret-access-key go together")
	}
	region := *p.region
	if region == "" {
		if region, err = env.Region(ctx); err != nil {
			return "", err
		}
	}
	endpoint := *p.endpoint
	if endpoint == "" {
		endpoint = "https://sts." + region + ".amazonaws.com/"
	}
	header := http.Header{}
	if *p.serverID != "" {
		header.Set("X-Consul-IAM-ServerID", *p.serverID)
	}
	if *p.entity {
		body, err := entityBody(ctx, client, endpoint, region, creds)
		if err != nil {
			return "", err
		}
		entity, err := signed(ctx, iamURL, body, http.Header{}, creds, "iam", iamRegion)
		if err != nil {
			return "", err
		}
		text, err := json.Marshal(entity.Header)
		if err != nil {
			return "", err
		}
		header.Set("X-Consul-IAM-GetEntity-Method", http.MethodPost)
		header.Set("X-Consul-IAM-GetEntity-URL", iamURL)
		header.Set("X-Consul-IAM-GetEntity-Headers", string(text))
		header.Set("X-Consul-IAM-GetEntity-Body", body)
	}
	req, err := signed(ctx, endpoint, callerBody, header, creds, "sts", region)
	if err != nil {
		return "", err
	}
	headers, err := json.Marshal(req.Header)
	if err != nil {
		return "", err
	}
	proof, err := json.Marshal(struct {
		Method  string `json:"iam_http_request_method"`
		URL     []byte `json:"iam_request_url"`
		Headers []byte `json:"iam_request_headers"`
		Body    []byte `json:"iam_request_body"`
	}{http.MethodPost, []byte(req.URL.String()), headers, []byte(callerBody)})
	return string(proof), err
}

// signed makes a request and signs it.
func signed(ctx context.Context, address, body string, header http.Header, c *awsauth.Credentials, service, region string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Content-Type", formType)
	awsauth.Sign(req, []byte(body), c, service, region, time.Now())
	return req, nil
}

// entityBody asks STS who the caller is, and returns the body of a request for the details.
func entityBody(ctx context.Context, client *http.Client, endpoint, region string, c *awsauth.Credentials) (string, error) {
	req, err := signed(ctx, endpoint, callerBody, http.Header{}, c, "sts", region)
	if err != nil {
		return "", err
	}
	answer, err := fetch.Do(client, req, maxAnswer)
	if err != nil {
		return "", fmt.Errorf("ask STS who this is: %w", err)
	}
	if answer.Status != http.StatusOK {
		return "", fmt.Errorf("ask STS who this is: status %d", answer.Status)
	}
	var identity struct {
		ARN string `xml:"GetCallerIdentityResult>Arn"`
	}
	if err := xml.Unmarshal(answer.Body, &identity); err != nil {
		return "", fmt.Errorf("read who this is: %w", err)
	}
	return entityRequest(identity.ARN)
}

// entityRequest returns the body of a request for the details of a principal.
func entityRequest(arn string) (string, error) {
	fields := strings.SplitN(arn, ":", 6)
	if len(fields) != 6 {
		return "", fmt.Errorf("STS named no principal: %q", arn)
	}
	path := strings.Split(fields[5], "/")
	v := url.Values{"Version": {"2010-05-08"}}
	switch {
	case path[0] == "assumed-role" && len(path) == 3:
		v.Set("Action", "GetRole")
		v.Set("RoleName", path[1])
	case path[0] == "user" && len(path) > 1:
		v.Set("Action", "GetUser")
		v.Set("UserName", path[len(path)-1])
	default:
		return "", fmt.Errorf("%s is neither a role nor a user", arn)
	}
	return v.Encode(), nil
}
