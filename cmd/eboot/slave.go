package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) slaveCommand() *cobra.Command {
	return group("slave", "Who may boot", c.slaveAllow(), c.slaveDeny(), c.slaveList(), c.slaveCheck(), c.slaveExplain())
}

func (c *command) slaveAllow() *cobra.Command {
	var channel string
	var labels []string
	cmd := &cobra.Command{
		Use: "allow PREFIX...", Short: "Let addresses boot: IPv4 hosts or CIDRs; the longest prefix that covers an address decides",
		Args: arguments(1, -1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			set, err := parseLabels(labels)
			if err != nil {
				return err
			}
			prefixes, err := parsePrefixes(args)
			if err != nil {
				return err
			}
			entries := make([]eboot.WhitelistEntry, len(prefixes))
			for i, p := range prefixes {
				entries[i] = eboot.WhitelistEntry{Prefix: p, Channel: channel, Labels: set}
			}
			result, err := client.Allow(ctx, entries...)
			if err != nil {
				return err
			}
			if ch, err := client.Channel(ctx, channel); errors.Is(err, eboot.ErrNotFound) || err == nil && len(ch.Bundles) == 0 && !c.rolling(ctx, client, channel) {
				fmt.Fprintf(c.err, "note: channel %s points to no bundle; `eboot channel set %s NAME@VERSION` lets these slaves boot\n", channel, channel)
			}
			return c.print(result, func(w io.Writer) error {
				return written(w, fmt.Sprintf("allowed %s on channel %s", strings.Join(args, " "), channel), result)
			})
		}),
	}
	cmd.Flags().StringVar(&channel, "channel", eboot.DefaultChannel, "channel these slaves boot from")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "label k=v; may be repeated")
	return c.write(cmd)
}

// rolling reports whether a rollout of a channel is under way, which slaves then wait for.
func (c *command) rolling(ctx context.Context, client *api.Client, channel string) bool {
	r, err := client.Rollout(ctx, channel)
	return err == nil && !r.Phase.Over()
}

func parsePrefixes(args []string) ([]netip.Prefix, error) {
	prefixes := make([]netip.Prefix, len(args))
	for i, a := range args {
		p, err := eboot.ParsePrefix(a)
		if err != nil {
			return nil, err
		}
		prefixes[i] = p
	}
	return prefixes, nil
}

func parseLabels(labels []string) (map[string]string, error) {
	if len(labels) == 0 {
		return nil, nil
	}
	set := map[string]string{}
	for _, l := range labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return nil, fmt.Errorf("--label %q: want k=v: %w", l, eboot.ErrInvalid)
		}
		if _, twice := set[k]; twice {
			return nil, fmt.Errorf("--label %q: %s is given twice: %w", l, k, eboot.ErrInvalid)
		}
		set[k] = v
	}
	return set, eboot.CheckLabels(set)
}

func (c *command) slaveDeny() *cobra.Command {
	return c.write(&cobra.Command{
		Use: "deny PREFIX...", Short: "Take entries out of the whitelist; connections of slaves that nothing covers any more end",
		Args: arguments(1, -1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			prefixes, err := parsePrefixes(args)
			if err != nil {
				return err
			}
			result, err := client.Deny(ctx, prefixes...)
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				return written(w, "denied "+strings.Join(args, " "), result)
			})
		}),
	})
}

func (c *command) slaveList() *cobra.Command {
	var entries bool
	cmd := &cobra.Command{
		Use: "list", Short: "Show the fleet: every slave that was seen, and every entry of the whitelist of which none was", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			if entries {
				return c.listEntries(ctx, client, args)
			}
			slaves, err := client.Slaves(ctx)
			if err != nil {
				return err
			}
			return c.print(slaves, func(w io.Writer) error {
				rows := make([][]string, len(slaves))
				for i, s := range slaves {
					rows[i] = fleetRow(s)
				}
				return table(w, "ADDRESS/PREFIX LABELS CHANNEL ERTS BUNDLE PHASE SERVER LOADED-IN BYTES LAST-SEEN FAILURES", rows)
			})
		}),
	}
	cmd.Flags().BoolVar(&entries, "entries", false, "the whitelist as it was written, one row for each entry")
	return c.read(cmd)
}

// listEntries shows the whitelist.
func (c *command) listEntries(ctx context.Context, client *api.Client, _ []string) error {
	entries, err := client.Whitelist(ctx)
	if err != nil {
		return err
	}
	return c.print(entries, func(w io.Writer) error {
		rows := make([][]string, len(entries))
		for i, e := range entries {
			rows[i] = []string{e.Prefix.String(), e.Channel, labelText(e.Labels)}
		}
		return table(w, "PREFIX CHANNEL LABELS", rows)
	})
}

// fleetRow is a slave, or an entry of the whitelist of which none was seen. A bundle that it
// gets at its next boot, and does not run, stands behind an arrow.
func fleetRow(s eboot.SlaveStatus) []string {
	address, phase, server, took, size := s.Prefix.String(), "-", "-", "-", "-"
	failures := "-"
	if s.Slave.IsValid() {
		address, phase, failures = s.Slave.String(), "asked", fmt.Sprint(s.Failures)
	}
	var runs eboot.Ref
	if b := s.Boot; b != nil {
		runs, phase, server, took, size = b.Bundle, phaseText(*b), b.Server[:min(8, len(b.Server))], durationText(*b), bytesText(b.Bytes)
	}
	if s.Refusal != "" {
		phase = "refused"
	}
	bundle := refText(runs)
	if s.Next != runs && !s.Next.IsZero() {
		bundle += "->" + s.Next.String()
	}
	return []string{address, labelText(s.Labels), dash(s.Channel), dash(s.ERTS), bundle, phase, server, took, size, timeText(s.LastSeen), failures}
}

func (c *command) slaveCheck() *cobra.Command {
	return c.read(&cobra.Command{
		Use: "check ADDR", Short: "Say whether an address is whitelisted (exit 6 when not)", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			addr, err := eboot.ParseAddr(args[0])
			if err != nil {
				return err
			}
			check, err := client.Check(ctx, addr)
			if err != nil {
				return err
			}
			err = c.print(check, func(w io.Writer) error {
				if !check.Whitelisted {
					_, err := fmt.Fprintf(w, "%s is not whitelisted\n", addr)
					return err
				}
				_, err := fmt.Fprintf(w, "%s is whitelisted by %s: channel %s, labels %s\n", addr, check.Entry.Prefix, check.Entry.Channel, labelText(check.Entry.Labels))
				return err
			})
			if err == nil && !check.Whitelisted {
				return fmt.Errorf("%w: %w", eboot.ErrDenied, errNegative)
			}
			return err
		}),
	})
}

func (c *command) slaveExplain() *cobra.Command {
	return &cobra.Command{
		Use: "explain ADDR", Short: "Say step by step why an address would or would not boot", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			addr, err := eboot.ParseAddr(args[0])
			if err != nil {
				return err
			}
			e, err := client.Explain(ctx, addr)
			if err != nil {
				return err
			}
			return c.print(e, func(w io.Writer) error {
				rows := make([][]string, len(e.Steps))
				for i, s := range e.Steps {
					rows[i] = []string{s.Step, string(s.Result), s.Detail}
				}
				if err := table(w, "STEP RESULT DETAIL", rows); err != nil {
					return err
				}
				verdict := "would boot"
				if !e.Boots {
					verdict = "would not boot"
				}
				if _, err := fmt.Fprintf(w, "%s %s\n", addr, verdict); err != nil || e.Advice == "" {
					return err
				}
				_, err := fmt.Fprintf(w, "to do: %s\n", e.Advice)
				return err
			})
		}),
	}
}
