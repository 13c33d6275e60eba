// Package explaincmd holds the command that tells what becomes of a request in the mesh, and reads the files with entries
// that commands try before they are written.
package explaincmd

import (
	"encoding/json"
	"flag"
	"strings"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/explain"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "explain", Synopsis: "Tell what becomes of a request between services, and why", FlagExit: 2, Setup: run,
		Client: true, Server: true, Tenancy: true,
		Help: "Tells whether a request from one service to another is allowed, which intention and permission decide, and which route, split, " +
			"subset, failover and instances it takes, as the sidecars of both would have it. With -what-if, also what would be otherwise " +
			"with entries changed: each FILE has an entry, or blocks \"entry\" with one each and \"delete\" with a kind and a name. Nothing is written. " +
			"Exits 0 if the request is allowed, 1 if it is denied, and 2 if that depends on something or can not be told.",
	}}
}

// An answer is what /v1/explain returns.
type answer struct {
	explain.Explanation
	WhatIf      *explain.Explanation `json:",omitempty"`
	Differences []string             `json:",omitempty"`
}

func run(f *flag.FlagSet) func(*verb.Call) error {
	var req explain.Request
	f.StringVar(&req.From, "from", "", "`name` of the calling service; required")
	f.StringVar(&req.To, "to", "", "`name` of the service that is called; required")
	f.StringVar(&req.Method, "method", "GET", "HTTP `method`")
	f.StringVar(&req.Path, "path", "/", "`path` of the request, with its query")
	f.StringVar(&req.Host, "host", "", "`host` that is asked for; default the name of the service")
	f.IntVar(&req.Port, "port", 0, "local `port` of the upstream, for a sidecar that has several to the service")
	headers := verb.Strings(f, "H", "`header` of the request as name:value; repeatable")
	jwt := f.String("jwt", "", "`token` of the request, or the claims of a valid one as a JSON object; @FILE reads it from a file, - from standard input")
	files := verb.Strings(f, "what-if", "`file` with entries to try; repeatable")
	format := f.String("format", "pretty", "`format` of the output: pretty or json")
	return func(c *verb.Call) error {
		fail := func(err error) error { return verb.Exit(2, err) }
		switch {
		case len(c.Args) > 0:
			return fail(verb.Errorf("Unexpected argument %q", c.Args[0]))
		case req.From == "" || req.To == "":
			return fail(verb.Errorf("Must specify -from and -to"))
		case *format != "pretty" && *format != "json":
			return fail(verb.Errorf("Unknown format %q: it is pretty or json", *format))
		}
		for _, h := range *headers {
			name, value, ok := strings.Cut(h, ":")
			if !ok {
				return fail(verb.Errorf("Header %q is not of the form name:value", h))
			}
			req.Headers = append(req.Headers, explain.Header{Name: strings.TrimSpace(name), Value: strings.TrimSpace(value)})
		}
		if *jwt != "" {
			text, err := c.Data(*jwt)
			if err != nil {
				return fail(verb.Errorf("Error reading the token: %w", err))
			}
			req.JWT = strings.TrimSpace(text)
		}
		body := struct {
			explain.Request
			WhatIf []map[string]any `json:",omitempty"`
		}{Request: req}
		for _, file := range *files {
			text, err := c.File(file)
			if err != nil {
				return fail(verb.Errorf("Error reading %s: %w", file, err))
			}
			docs, err := Documents(file, []byte(text))
			if err != nil {
				return fail(err)
			}
			for _, d := range docs {
				body.WhatIf = append(body.WhatIf, d.JSON())
			}
		}
		client, err := c.API()
		if err != nil {
			return fail(err)
		}
		var raw json.RawMessage
		if _, err := client.Raw().Write("/v1/explain", body, &raw, c.Write()); err != nil {
			return fail(verb.Errorf("Error explaining the request: %w", err))
		}
		var a answer
		if err := json.Unmarshal(raw, &a); err != nil {
			return fail(verb.Errorf("Error reading the answer: %w", err))
		}
		if *format == "json" {
			if err := c.PrintJSON(raw); err != nil {
				return fail(err)
			}
		} else {
			show(c, &a)
		}
		verdict := a.Verdict
		if a.WhatIf != nil {
			verdict = a.WhatIf.Verdict
		}
		switch verdict {
		case explain.Allowed:
			return nil
		case explain.Denied:
			return verb.Exit(1, nil)
		}
		return verb.Exit(2, nil)
	}
}

// show prints the explanation, or with entries changed that and what differs from now.
func show(c *verb.Call, a *answer) {
	if a.WhatIf == nil {
		explain.Text(c.Out, &a.Explanation)
		return
	}
	c.Println("With these changes:")
	explain.Text(c.Out, a.WhatIf)
	c.Println()
	if len(a.Differences) == 0 {
		c.Println("Nothing differs from now.")
		return
	}
	c.Println("What differs from now:")
	for _, d := range a.Differences {
		c.Printf("  %s\n", d)
	}
}
