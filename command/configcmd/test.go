package configcmd

import (
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/explain"
)

const testHelp = "Runs files of configuration tests, HCL or JSON: configuration entries, services, and what is expected of requests between " +
	"them. No cluster is needed. Prints what fails, with an explanation of what happens instead. Exits 0 if all tests pass, 1 if one " +
	"fails, and 2 if a file can not be run."

func test(f *flag.FlagSet) func(*verb.Call) error {
	verbose := f.Bool("v", false, "print the names of tests that pass, too")
	only := f.String("run", "", "run only tests whose name matches this regular `expression`")
	format := f.String("format", "pretty", "`format` of the output: pretty, json or junit")
	return func(c *verb.Call) error {
		if len(c.Args) == 0 {
			return verb.Exit(2, verb.Errorf("Must specify at least one file of tests"))
		}
		show, ok := map[string]func(io.Writer, []*fileResult) error{
			"pretty": func(w io.Writer, all []*fileResult) error { return showPretty(w, all, *verbose) }, "json": showJSON, "junit": showJUnit,
		}[*format]
		if !ok {
			return verb.Exit(2, verb.Errorf("Unknown format %q: it is pretty, json or junit", *format))
		}
		match, err := regexp.Compile(*only)
		if err != nil {
			return verb.Exit(2, verb.Errorf("-run: %w", err))
		}
		var all []*fileResult
		for _, file := range c.Args {
			text, err := c.File(file)
			if err != nil {
				all = append(all, &fileResult{File: file, Error: err.Error()})
				continue
			}
			all = append(all, runFile(file, []byte(text), match.MatchString))
		}
		if err := show(c.Out, all); err != nil {
			return verb.Exit(2, err)
		}
		switch t := sum(all); {
		case t.broken > 0:
			return verb.Exit(2, nil)
		case t.failed > 0:
			return verb.Exit(1, nil)
		}
		return nil
	}
}

// totals count tests, and files that could not be run.
type totals struct{ passed, failed, broken int }

func sum(all []*fileResult) (t totals) {
	for _, r := range all {
		if r.Error != "" {
			t.broken++
		}
		for _, x := range r.Tests {
			if x.Passed {
				t.passed++
			} else {
				t.failed++
			}
		}
	}
	return t
}

func showPretty(w io.Writer, all []*fileResult, verbose bool) error {
	for _, r := range all {
		of := sum([]*fileResult{r})
		switch {
		case r.Error != "":
			fmt.Fprintf(w, "ERROR %s\n%s\n", r.File, indent(r.Error, "      "))
		case of.failed > 0:
			fmt.Fprintf(w, "FAIL  %s\n", r.File)
		default:
			fmt.Fprintf(w, "ok    %s (%d tests)\n", r.File, of.passed)
		}
		for _, t := range r.Tests {
			if t.Passed {
				if verbose {
					fmt.Fprintf(w, "  ok    %s\n", t.Name)
				}
				continue
			}
			fmt.Fprintf(w, "  FAIL  %s (%s:%d)\n", t.Name, r.File, t.Line)
			for _, f := range t.Failures {
				fmt.Fprintln(w, indent(f, "        "))
			}
			if t.Outcome != nil {
				fmt.Fprintf(w, "\n%s\n", indent(outcome(t), "        "))
			}
		}
	}
	t := sum(all)
	files := "files"
	if len(all) == 1 {
		files = "file"
	}
	line := fmt.Sprintf("%d passed, %d failed in %d %s", t.passed, t.failed, len(all), files)
	if t.broken > 0 {
		line += fmt.Sprintf(", %d could not be run", t.broken)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}

// outcome explains what happened in a test that failed.
func outcome(t *testResult) string {
	var b strings.Builder
	explain.Text(&b, t.Outcome)
	return b.String()
}

func indent(s, by string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		if l != "" {
			lines[i] = by + l
		}
	}
	return strings.Join(lines, "\n")
}

func showJSON(w io.Writer, all []*fileResult) error {
	t := sum(all)
	text, err := json.MarshalIndent(struct {
		Passed, Failed, Broken int
		Files                  []*fileResult
	}{t.passed, t.failed, t.broken, all}, "", "    ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(text))
	return err
}

// showJUnit writes the form that CI servers read.
func showJUnit(w io.Writer, all []*fileResult) error {
	type message struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	type testcase struct {
		Name    string   `xml:"name,attr"`
		Class   string   `xml:"classname,attr"`
		Failure *message `xml:"failure,omitempty"`
		Error   *message `xml:"error,omitempty"`
	}
	type suite struct {
		Name     string     `xml:"name,attr"`
		Tests    int        `xml:"tests,attr"`
		Failures int        `xml:"failures,attr"`
		Errors   int        `xml:"errors,attr"`
		Cases    []testcase `xml:"testcase"`
	}
	out := struct {
		XMLName xml.Name `xml:"testsuites"`
		Suites  []suite  `xml:"testsuite"`
	}{}
	for _, r := range all {
		t := sum([]*fileResult{r})
		s := suite{Name: r.File, Tests: t.passed + t.failed + t.broken, Failures: t.failed, Errors: t.broken}
		if r.Error != "" {
			s.Cases = append(s.Cases, testcase{Name: "file", Class: r.File, Error: &message{"the file can not be run", r.Error}})
		}
		for _, x := range r.Tests {
			c := testcase{Name: x.Name, Class: r.File}
			if !x.Passed {
				c.Failure = &message{Message: strings.Join(x.Failures, "; ")}
				if x.Outcome != nil {
					c.Failure.Text = outcome(x)
				}
			}
			s.Cases = append(s.Cases, c)
		}
		out.Suites = append(out.Suites, s)
	}
	text, err := xml.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, text)
	return err
}
