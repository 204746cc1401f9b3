package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
	"eboot/config"
	"eboot/internal/agent"
)

// devFlags are the flags of `eboot dev`.
type devFlags struct {
	ip      string
	allow   []string
	verbose bool
}

func (c *command) devCommand() *cobra.Command {
	var flags devFlags
	cmd := &cobra.Command{
		Use:   "dev [PATH]",
		Short: "Run one server in a temporary directory, publish PATH (default: the Erlang found on PATH), print the erl line to paste",
		Args:  arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := ""
			if len(args) > 0 {
				path = args[0]
			}
			return c.dev(cmd.Context(), path, flags)
		},
	}
	cmd.Flags().StringVar(&flags.ip, "ip", "127.0.0.1", "address to serve slaves on")
	cmd.Flags().StringArrayVar(&flags.allow, "allow", nil, "CIDR that may boot beside loopback; may be repeated")
	cmd.Flags().BoolVar(&flags.verbose, "verbose", false, "log everything, not only warnings")
	return cmd
}

// dev runs a server until ctx ends and leaves nothing behind.
func (c *command) dev(ctx context.Context, path string, flags devFlags) (err error) {
	defer func() {
		if ctx.Err() != nil {
			err = nil // interrupted: what was cut short by that is no failure
		}
	}()
	ip, err := eboot.ParseAddr(flags.ip)
	if err != nil {
		return fmt.Errorf("--ip: %w", err)
	}
	// A node on this machine that asks another address of it asks from that address.
	prefixes, err := parsePrefixes(append([]string{"127.0.0.0/8", ip.String()}, flags.allow...))
	if err != nil {
		return fmt.Errorf("--allow: %w", err)
	}
	installed, erlErr := erlangRoot(ctx)
	if path == "" {
		if erlErr != nil {
			return erlErr
		}
		path = installed
	}
	dir, err := os.MkdirTemp("", "eboot-dev-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	settings, err := devConfig(dir, ip, path, installed)
	if err != nil {
		return err
	}
	if flags.verbose {
		settings.Log.Level = "debug"
	}
	// That a server alone elects itself, and has an API for everybody here, is no news in a
	// minute's trial.
	quiet := hclog.ExcludeFuncs{hclog.ExcludeByPrefix("heartbeat timeout reached, starting election").Exclude, hclog.ExcludeByPrefix("api.insecure: ").Exclude}
	a, err := agent.New(agent.Options{Config: settings, Logger: c.logger(settings.Log, quiet.Exclude), Version: version, Holder: holderCommand()})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(running) }()
	select {
	case <-a.Started():
	case err := <-ended:
		return err
	}
	trial := devTrial{IP: ip, API: a.APIAddress(), root: settings.Boot.Roots[0]}
	if slices.Contains(settings.Boot.Roots, installed) {
		trial.root = installed
	}
	if err := c.devPublish(ctx, trial, path, prefixes); err != nil {
		stop()
		return errors.Join(err, <-ended)
	}
	return <-ended
}

// erlangRoot asks the erl on PATH for its root directory.
func erlangRoot(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, "erl", "-noinput", "-boot", "start_clean", "-eval", `io:put_chars(code:root_dir()), halt().`)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("dev: no erl on PATH; install Erlang/OTP (Debian: apt-get install erlang-base) or name a directory or archive to publish: %w", eboot.ErrNotFound)
		}
		return "", fmt.Errorf("dev: ask erl for its root directory: %w: %s", err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// devConfig is the whole configuration of a dev server; no file, no environment.
func devConfig(dir string, ip netip.Addr, path, installed string) (config.Config, error) {
	settings := config.Default()
	settings.DataDir = filepath.Join(dir, "data")
	settings.Cluster.Name = "dev"
	settings.Boot.Bind = []netip.Addr{ip}
	settings.Log.Level = "warn"
	admin := ip
	if !admin.IsLoopback() {
		admin = settings.API.Bind.Addr()
	}
	settings.API = config.API{Bind: netip.AddrPortFrom(admin, settings.API.Bind.Port()), Insecure: true}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return settings, err
	}
	for _, root := range []string{installed, absolute} {
		if info, err := os.Stat(root); err == nil && info.IsDir() && !slices.Contains(settings.Boot.Roots, root) {
			settings.Boot.Roots = append(settings.Boot.Roots, root)
		}
	}
	return settings, nil
}

// devTrial is what `eboot dev` says once it serves.
type devTrial struct {
	IP      netip.Addr         `json:"ip"`
	API     string             `json:"api"`
	Command []string           `json:"command"` // boots a node
	Publish api.PublishOutcome `json:"publish"`

	root string // the ROOTDIR of a node that is started with this machine's erl
}

func (c *command) devPublish(ctx context.Context, trial devTrial, from string, prefixes []netip.Prefix) error {
	client, err := api.NewClient(api.ClientOptions{Addresses: []string{trial.API}, Timeout: c.timeout})
	if err != nil {
		return err
	}
	defer client.Close()
	entries := make([]eboot.WhitelistEntry, len(prefixes))
	for i, p := range prefixes {
		entries[i] = eboot.WhitelistEntry{Prefix: p}
	}
	if _, err := client.Allow(ctx, entries...); err != nil {
		return err
	}
	ref := eboot.Ref{Name: "dev", Version: "1"}
	outcome, _, err := c.publish(ctx, client, ref, from, publishFlags{channel: eboot.DefaultChannel, dereference: true})
	if err != nil {
		return err
	}
	trial.Publish = outcome
	trial.Command = []string{"erl", "-loader", "inet", "-hosts", trial.IP.String(), "-id", "dev"}
	return c.print(trial, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "serving on %s, API on %s; boot a node that keeps no code on its disk with\n\n  %s\n\n"+
			"and watch it with `eboot boots --follow --address %s`. Interrupt to stop.\n", trial.IP, trial.API, strings.Join(trial.Command, " "), trial.API)
		return err
	})
}
