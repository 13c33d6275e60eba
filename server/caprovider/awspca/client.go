package awspca

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
)

const (
	callTimeout = 30 * time.Second
	maxReply    = 1 << 20
	maxMessage  = 512
	attempts    = 5                      // of a call that is throttled, or fails at AWS
	firstPause  = 100 * time.Millisecond // between them, at most; then twice as long
)

// A client calls AWS Private CA.
type client struct {
	http   *http.Client
	env    *awsauth.Environment
	region string // empty until it is known
}

// An apiError is an answer that is no success.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string {
	return fmt.Sprintf("AWS Private CA answers with status %d: %s: %s", e.status, e.code, e.message)
}

func (e *apiError) again() bool {
	return e.status >= 500 || e.code == "ThrottlingException" || e.code == "TooManyRequestsException"
}

// hasCode tells whether an error is an answer of a code.
func hasCode(err error, code string) bool {
	e, ok := errors.AsType[*apiError](err)
	return ok && e.code == code
}

// call makes a request of the JSON protocol of AWS, signed, and decodes the answer.
func (c *client) call(ctx context.Context, action string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	wait := firstPause
	for n := 1; ; n++ {
		err := c.once(ctx, action, body, out)
		failed, ok := errors.AsType[*apiError](err)
		if !ok || !failed.again() || n == attempts {
			return err
		}
		if !pause.For(ctx, wait/2+rand.N(wait/2)) {
			return ctx.Err()
		}
		wait *= 2
	}
}

func (c *client) once(ctx context.Context, action string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	credentials, err := c.env.Credentials(ctx)
	if err != nil {
		return err
	}
	region := c.region
	if region == "" {
		if region, err = c.env.Region(ctx); err != nil {
			return err
		}
	}
	if !plain(region) {
		return errors.New("the AWS region has characters that regions do not have")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint(region), bytes.NewReader(body))
	if err != nil {
		return errors.New("the endpoint of AWS Private CA is no URL")
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "ACMPrivateCA."+action)
	awsauth.Sign(req, body, credentials, "acm-pca", region, time.Now())
	answer, err := fetch.Do(c.http, req, maxReply)
	if err != nil {
		return err
	}
	if answer.Status != http.StatusOK {
		var problem struct {
			Type    string `json:"__type"`
			Message string `json:"message"`
		}
		_ = json.Unmarshal(answer.Body, &problem) // it says less then
		code := problem.Type[strings.LastIndexByte(problem.Type, '#')+1:]
		return &apiError{answer.Status, code, problem.Message[:min(len(problem.Message), maxMessage)]}
	}
	if out == nil || len(answer.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(answer.Body, out); err != nil {
		return errors.New("the answer of AWS Private CA cannot be read")
	}
	return nil
}

// endpoint is the address of the service; the variables are those of AWS's own tools.
func (c *client) endpoint(region string) string {
	for _, name := range []string{"AWS_ENDPOINT_URL_ACM_PCA", "AWS_ENDPOINT_URL"} {
		if v := c.env.Getenv(name); v != "" {
			return strings.TrimSuffix(v, "/") + "/"
		}
	}
	suffix := "amazonaws.com"
	if strings.HasPrefix(region, "cn-") {
		suffix += ".cn"
	}
	return "https://acm-pca." + region + "." + suffix + "/"
}

// plain tells whether a text has only what names of regions have.
func plain(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}
