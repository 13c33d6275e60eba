// Package verb is what the commands of the command line have in common: how they are declared, how flags are parsed and
// help is shown, how an agent is reached, and how failure becomes an exit code.
package verb

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/consul/api"
	"github.com/posener/complete"

	"github.com/sarnmesh/sarn/internal/spelling"
)

// A Verb declares one command.
type Verb struct {
	Path     string // its name, such as "kv get"
	Args     string // its arguments as usage shows them, such as "KEY [DATA]"
	Synopsis string // one line, without a full stop
	Help     string // paragraphs shown below the usage line; empty shows the synopsis

	Client  bool // takes the flags for reaching an agent
	Server  bool // takes -datacenter and -stale
	Tenancy bool // takes -namespace and -partition

	Formats bool   // takes -format, which the Call tells by WantsJSON
	Example string // a command line, without the name of the program
	// Complete says what arguments and flags, by their names, are called; arguments have the name "".
	Complete map[string]Kind

	// FlagExit is the exit code for flags that do not parse; 0 means 1.
	FlagExit int

	// Setup adds the command's own flags and returns the function that runs it once they were parsed.
	Setup func(f *flag.FlagSet) func(*Call) error
}

// Streams are what a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Std are the streams of the process.
func Std() Streams { return Streams{os.Stdin, os.Stdout, os.Stderr} }

// A Call is one run of a command.
type Call struct {
	Streams
	Args    []string // what is left after the flags
	Context context.Context

	verb *Verb
	opt  options
	// missing is the line of a policy that the agent said would have let a request through.
	missing *hint
}

// options are the values of the common flags.
type options struct {
	addr, token, tokenFile                            string
	caFile, caPath, clientCert, clientKey, serverName string
	datacenter                                        string
	stale                                             bool
	namespace, partition                              string
	format                                            string
}

// An exit ends a command with a code other than 1.
type exit struct {
	code int
	err  error // nil says nothing
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// Exit makes an error that ends the command with the given code after showing err, which may be nil.
func Exit(code int, err error) error { return &exit{code, err} }

// A usageError is shown with the command's help.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// Usagef makes an error about how a command was called; its help is shown after it.
func Usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// Errorf makes an error whose text is shown as it is. Texts of commands are a contract with scripts, so they keep the
// capitals and punctuation they are known by.
func Errorf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// Factory makes the command for a dispatcher.
func (v Verb) Factory(ctx context.Context, s Streams) cli.CommandFactory {
	return func() (cli.Command, error) { return &command{Verb: v, ctx: ctx, streams: s}, nil }
}

// A command is a Verb with the streams it uses.
type command struct {
	Verb
	ctx     context.Context //nolint:containedctx // handed to the one call the command makes
	streams Streams
}

// flags makes the command's flag set. The sets of common flags are separate, so that help can list them apart.
func (c *command) flags(opt *options) (all, own, shared *flag.FlagSet, run func(*Call) error) {
	own = flag.NewFlagSet(c.Path, flag.ContinueOnError)
	shared = flag.NewFlagSet(c.Path, flag.ContinueOnError)
	if c.Setup != nil {
		run = c.Setup(own)
	}
	if c.Formats {
		own.StringVar(&opt.format, "format", "pretty", "`format` of the output: pretty or json")
	}
	if c.Client {
		shared.StringVar(&opt.addr, "http-addr", "", "`address` of the agent: host:port, http(s)://host:port or unix:///path; CONSUL_HTTP_ADDR")
		shared.StringVar(&opt.token, "token", "", "ACL `token`; CONSUL_HTTP_TOKEN")
		shared.StringVar(&opt.tokenFile, "token-file", "", "`file` with the ACL token; CONSUL_HTTP_TOKEN_FILE")
		shared.StringVar(&opt.caFile, "ca-file", "", "CA `file` to verify the agent with; CONSUL_CACERT")
		shared.StringVar(&opt.caPath, "ca-path", "", "`folder` of CA files to verify the agent with; CONSUL_CAPATH")
		shared.StringVar(&opt.clientCert, "client-cert", "", "client certificate `file`; CONSUL_CLIENT_CERT")
		shared.StringVar(&opt.clientKey, "client-key", "", "client key `file`; CONSUL_CLIENT_KEY")
		shared.StringVar(&opt.serverName, "tls-server-name", "", "`name` to expect in the agent's certificate; CONSUL_TLS_SERVER_NAME")
	}
	if c.Server {
		shared.StringVar(&opt.datacenter, "datacenter", "", "`name` of the datacenter to ask; default the agent's")
		shared.BoolVar(&opt.stale, "stale", false, "let any server answer, not only the leader")
	}
	if c.Tenancy {
		shared.StringVar(&opt.namespace, "namespace", "", "`name` of a namespace; passed on, without effect here")
		shared.StringVar(&opt.partition, "partition", "", "`name` of an admin partition; passed on, without effect here")
	}
	all = flag.NewFlagSet(c.Path, flag.ContinueOnError)
	own.VisitAll(func(f *flag.Flag) { all.Var(f.Value, f.Name, f.Usage) })
	shared.VisitAll(func(f *flag.Flag) {
		if all.Lookup(f.Name) == nil {
			all.Var(f.Value, f.Name, f.Usage)
		}
	})
	return all, own, shared, run
}

// Run parses the arguments, runs the command and returns its exit code.
func (c *command) Run(args []string) int {
	call := &Call{Streams: c.streams, Context: c.ctx, verb: &c.Verb, missing: new(hint)}
	all, _, _, run := c.flags(&call.opt)
	all.SetOutput(io.Discard)
	all.Usage = func() {}
	if err := all.Parse(args); err != nil {
		fmt.Fprintln(c.streams.Err, err)
		if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
			if near := nearFlag(all, name); near != "" {
				fmt.Fprintf(c.streams.Err, "Did you mean -%s?\n", near)
			}
		}
		fmt.Fprintf(c.streams.Err, "\n%s\n", c.Help())
		return max(c.FlagExit, 1)
	}
	call.Args = all.Args()
	if run == nil {
		return cli.RunResultHelp
	}
	if c.Formats && call.opt.format != "pretty" && call.opt.format != "json" {
		fmt.Fprintf(c.streams.Err, "Unknown format: %s\n", call.opt.format)
		return 1
	}
	err := run(call)
	switch e := (*exit)(nil); {
	case err == nil:
		return 0
	case errors.As(err, &e):
		if e.err != nil {
			fmt.Fprintln(c.streams.Err, strings.TrimRight(e.err.Error(), "\n"))
		}
		return e.code
	}
	fmt.Fprintln(c.streams.Err, strings.TrimRight(err.Error(), "\n"))
	if rule := call.missing.get(); rule != "" {
		fmt.Fprintf(c.streams.Err, "Hint: this line in a policy of the token grants it: %s\n", rule)
	}
	if u := (*usageError)(nil); errors.As(err, &u) {
		fmt.Fprintf(c.streams.Err, "\n%s\n", c.Help())
	}
	return 1
}

// nearFlag is the flag whose name is nearest to a mistyped one, empty if none is near.
func nearFlag(fs *flag.FlagSet, name string) string {
	var names []string
	fs.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	return spelling.Nearest(name, names)
}

// Synopsis is the command's line in lists.
func (c *command) Synopsis() string { return c.Verb.Synopsis }

// Help is the command's help text.
func (c *command) Help() string {
	var b strings.Builder
	_, own, shared, _ := c.flags(new(options))
	usage := "sarn " + c.Path
	if hasFlags(own) || hasFlags(shared) {
		usage += " [options]"
	}
	if c.Args != "" {
		usage += " " + c.Args
	}
	if c.Setup == nil {
		usage += " SUBCOMMAND"
	}
	text := c.Verb.Help
	if text == "" {
		text = c.Verb.Synopsis + "."
	}
	fmt.Fprintf(&b, "Usage: %s\n\n%s\n", usage, indent(paragraphs(text), "  "))
	if c.Example != "" {
		fmt.Fprintf(&b, "\nExample:\n\n  sarn %s\n", c.Example)
	}
	printFlags(&b, "Options", own)
	printFlags(&b, "Options for reaching an agent", shared)
	return strings.TrimRight(b.String(), "\n")
}

func hasFlags(fs *flag.FlagSet) bool {
	found := false
	fs.VisitAll(func(*flag.Flag) { found = true })
	return found
}

// printFlags lists flags with their usage.
func printFlags(w io.Writer, title string, fs *flag.FlagSet) {
	if !hasFlags(fs) {
		return
	}
	fmt.Fprintf(w, "\n%s:\n", title)
	fs.VisitAll(func(f *flag.Flag) {
		name, usage := flag.UnquoteUsage(f)
		head := "  -" + f.Name
		if name != "" {
			head += "=<" + name + ">"
		}
		if f.DefValue != "" && f.DefValue != "0" && f.DefValue != "false" && f.DefValue != "0s" {
			usage += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(w, "\n%s\n%s\n", head, indent(wrap(usage, 72), "      "))
	})
}

// paragraphs wraps each paragraph of a text.
func paragraphs(s string) string {
	var out []string
	for p := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		out = append(out, wrap(p, 76))
	}
	return strings.Join(out, "\n\n")
}

func indent(s, by string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if l != "" {
			lines[i] = by + l
		}
	}
	return strings.Join(lines, "\n")
}

// wrap breaks a text into lines of at most width letters, where words allow.
func wrap(s string, width int) string {
	var b strings.Builder
	length := 0
	for word := range strings.FieldsSeq(s) {
		if length > 0 && length+1+len(word) > width {
			b.WriteByte('\n')
			length = 0
		} else if length > 0 {
			b.WriteByte(' ')
			length++
		}
		b.WriteString(word)
		length += len(word)
	}
	return b.String()
}

// AutocompleteArgs predicts names where the command says which, else files.
func (c *command) AutocompleteArgs() complete.Predictor {
	if kind, ok := c.Complete[""]; ok {
		return c.predict(kind)
	}
	if c.Args == "" {
		return complete.PredictNothing
	}
	return complete.PredictFiles("*")
}

// AutocompleteFlags predicts the command's flags.
func (c *command) AutocompleteFlags() complete.Flags {
	all, _, _, _ := c.flags(new(options))
	out := complete.Flags{}
	all.VisitAll(func(f *flag.Flag) {
		out["-"+f.Name] = complete.PredictAnything
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			out["-"+f.Name] = complete.PredictNothing
		}
		if strings.HasSuffix(f.Name, "-file") || strings.HasSuffix(f.Name, "-path") || strings.HasSuffix(f.Name, "-dir") {
			out["-"+f.Name] = complete.PredictFiles("*")
		}
		if f.Name == "format" {
			out["-format"] = complete.PredictSet("json", "pretty")
		}
		if kind, ok := c.Complete[f.Name]; ok {
			out["-"+f.Name] = c.predict(kind)
		}
	})
	return out
}

// ---------------------------------------------------------------- the agent

// defaultAddr is where an agent is looked for when nothing says otherwise.
const defaultAddr = "http://127.0.0.1:8500"

// API returns a client of the agent that flags and environment name.
func (c *Call) API() (*api.Client, error) {
	conf := c.Config()
	client, err := api.NewClient(conf)
	if err != nil {
		return nil, fmt.Errorf("Error connecting to Sarn agent: %w", err) //nolint:staticcheck // shown as it is
	}
	c.missing.listen(conf.HttpClient)
	return client, nil
}

// Denies reports whether the agent that answered last shows nothing to those whom no rule lets see it, so that an empty
// list may be for want of a token.
func (c *Call) Denies() bool { return c.missing != nil && c.missing.denies.Load() }

// Config returns the client configuration that flags and environment make up.
func (c *Call) Config() *api.Config {
	conf := api.DefaultConfig()
	if os.Getenv(api.HTTPAddrEnvName) == "" {
		conf.Address = defaultAddr
	}
	given := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	o := c.opt
	given(&conf.Address, o.addr)
	given(&conf.Token, o.token)
	if o.token != "" {
		conf.TokenFile = "" // the flag beats the file variable
	}
	given(&conf.TokenFile, o.tokenFile)
	given(&conf.TLSConfig.CAFile, o.caFile)
	given(&conf.TLSConfig.CAPath, o.caPath)
	given(&conf.TLSConfig.CertFile, o.clientCert)
	given(&conf.TLSConfig.KeyFile, o.clientKey)
	given(&conf.TLSConfig.Address, o.serverName)
	given(&conf.Datacenter, o.datacenter)
	given(&conf.Namespace, o.namespace)
	given(&conf.Partition, o.partition)
	return conf
}

// Query returns the options of a read.
func (c *Call) Query() *api.QueryOptions {
	return (&api.QueryOptions{AllowStale: c.opt.stale}).WithContext(c.Context)
}

// Write returns the options of a write.
func (c *Call) Write() *api.WriteOptions { return (&api.WriteOptions{}).WithContext(c.Context) }

// TokenFlag is the token given on the command line, in the environment or in a file, for commands that pass it on.
func (c *Call) TokenFlag() (string, error) {
	conf := c.Config()
	if conf.TokenFile != "" {
		data, err := os.ReadFile(conf.TokenFile)
		if err != nil {
			return "", fmt.Errorf("Error loading token file %s : %w", conf.TokenFile, err) //nolint:staticcheck // clients match the text
		}
		if t := strings.TrimSpace(string(data)); t != "" {
			return t, nil
		}
	}
	return conf.Token, nil
}

// Printf writes to standard output.
func (c *Call) Printf(format string, args ...any) { fmt.Fprintf(c.Out, format, args...) }

// Println writes a line to standard output.
func (c *Call) Println(args ...any) { fmt.Fprintln(c.Out, args...) }

// WantsJSON reports whether the output is to be JSON; only commands that say Formats can be asked.
func (c *Call) WantsJSON() bool { return c.opt.format == "json" }

// PrintJSON writes a value to standard output as JSON for people.
func (c *Call) PrintJSON(v any) error {
	data, err := json.MarshalIndent(v, "", "    ")
	if err != nil {
		return err
	}
	c.Println(string(data))
	return nil
}

// Warnf writes a line to standard error.
func (c *Call) Warnf(format string, args ...any) { fmt.Fprintf(c.Err, format+"\n", args...) }

// Interruptible makes an interrupt or termination signal end the returned context rather than the process, for commands
// that wait and have something to tidy up.
func (c *Call) Interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
}

// NoArgs fails if there are arguments left after the flags.
func (c *Call) NoArgs() error {
	if n := len(c.Args); n > 0 {
		return Errorf("Too many arguments (expected 0, got %d)", n)
	}
	return nil
}

// ---------------------------------------------------------------- text

// Table lays rows out in columns: left-aligned, two spaces apart, as wide as the longest cell. The last column is not
// padded. It ends with a newline unless there are no rows.
func Table(rows [][]string) string {
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, cell := range r {
			b.WriteString(cell)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-len([]rune(cell))+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
