package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"eboot"
	"eboot/api"
)

// errNegative: the question was answered, and the answer is no. It was printed already.
var errNegative = errors.New("negative answer")

// command is what every verb needs: where to print, and how to reach a server.
type command struct {
	in       *os.File
	out, err io.Writer
	getenv   func(string) string

	format     string
	server     serverFlags
	timeout    time.Duration
	generation string
	stale      bool
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, out, errOut io.Writer) int {
	c := &command{in: os.Stdin, out: out, err: errOut, getenv: os.Getenv}
	root := c.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if errors.Is(err, fs.ErrNotExist) { // a file that an argument names
		err = fmt.Errorf("%w: %w", err, eboot.ErrNotFound)
	}
	if err != nil && !errors.Is(err, errNegative) {
		c.printError(err)
	}
	return exitCode(err)
}

func (c *command) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "eboot",
		Short:         "Highly available boot service for diskless Erlang/OTP nodes",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%v; see `%s --help`: %w", err, cmd.CommandPath(), eboot.ErrInvalid)
	})
	flags := root.PersistentFlags()
	flags.StringVarP(&c.format, "output", "o", "table", "output format: table or json (the API's own schema)")
	c.server.add(flags)
	flags.DurationVar(&c.timeout, "timeout", api.DefaultTimeout, "how long a call may take")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if c.format != "table" && c.format != "json" {
			return fmt.Errorf("--output %q: want table or json: %w", c.format, eboot.ErrInvalid)
		}
		if c.timeout <= 0 {
			return fmt.Errorf("--timeout %s: want a positive time: %w", c.timeout, eboot.ErrInvalid)
		}
		return nil
	}
	root.AddCommand(c.agentCommand(), c.devCommand(), c.bundleCommand(), c.slaveCommand(), c.channelCommand(),
		c.rolloutCommand(), c.bootsCommand(), c.eventsCommand(), c.clusterCommand(), c.snapshotCommand(), c.tokenCommand(), c.keygenCommand(), c.tlsCommand(), c.completionCommand(root), c.versionCommand(), c.sockholderCommand())
	root.AddCommand(c.otpAliases()...)
	return root
}

// group is a noun: it does nothing without a verb.
func group(use, short string, verbs ...*cobra.Command) *cobra.Command {
	g := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%s: unknown verb %q; see `%s --help`: %w", cmd.CommandPath(), args[0], cmd.CommandPath(), eboot.ErrInvalid)
			}
			return cmd.Help()
		},
	}
	g.AddCommand(verbs...)
	return g
}

// arguments wants between least and most arguments; most < 0 means no bound.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return fmt.Errorf("%s: got %d arguments; usage: %s: %w", cmd.CommandPath(), len(args), cmd.UseLine(), eboot.ErrInvalid)
		}
		return nil
	}
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q; see `%s --help`: %w", args[0], cmd.CommandPath(), eboot.ErrInvalid)
	}
	return nil
}

// write adds the flag that every change takes.
func (c *command) write(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.generation, "expect-generation", "", "do nothing unless the generation is this one")
	return cmd
}

// read adds the flag that every reading of the replicated state takes.
func (c *command) read(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&c.stale, "stale", false, "take what the server knows, without making sure that it is the newest")
	return cmd
}

// withClient runs a verb that talks to a server.
func (c *command) withClient(verb func(ctx context.Context, client *api.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		client, err := c.client()
		if err != nil {
			return err
		}
		defer client.Close()
		return verb(cmd.Context(), client, args)
	}
}

func (c *command) json() bool { return c.format == "json" }

// print writes v as JSON, or calls table.
func (c *command) print(v any, table func(w io.Writer) error) error {
	if !c.json() {
		return table(c.out)
	}
	e := json.NewEncoder(c.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (c *command) printError(err error) {
	if c.json() {
		e := json.NewEncoder(c.err)
		_ = e.Encode(api.DescribeError(err)) // nothing is left to say it to
		return
	}
	fmt.Fprintln(c.err, "eboot:", err)
}

// warn says what is no error on stderr, where it does not disturb the output.
func (c *command) warn(text string) { fmt.Fprintln(c.err, "eboot: warning:", text) }

// interactive reports whether progress may be shown: only to a person.
func (c *command) interactive() bool {
	f, ok := c.err.(*os.File)
	return ok && !c.json() && term.IsTerminal(int(f.Fd()))
}

// environ returns the variables that may hold configuration.
func (c *command) environ() []string { return os.Environ() }
