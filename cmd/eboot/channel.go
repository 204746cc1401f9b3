package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) channelCommand() *cobra.Command {
	return group("channel", "What boots", c.channelList(), c.channelShow(), c.channelSet(), c.channelUndo())
}

func (c *command) channelList() *cobra.Command {
	return c.read(&cobra.Command{
		Use: "list", Short: "Show every channel and the bundle it points to for each ERTS version", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			channels, err := client.Channels(ctx)
			if err != nil {
				return err
			}
			return c.print(channels, func(w io.Writer) error {
				var rows [][]string
				for _, ch := range channels {
					rows = append(rows, channelRows(ch)...)
				}
				return table(w, channelHeader, rows)
			})
		}),
	})
}

const channelHeader = "CHANNEL ERTS BUNDLE LOADER CONTROL LIVE"

func channelRows(ch eboot.Channel) [][]string {
	options := ch.Options.Words()
	if options.Live == eboot.LiveOn {
		options.Loader = eboot.LoaderStock // whatever it is set to
	}
	row := func(erts, bundle string) []string {
		return []string{ch.Name, erts, bundle, options.Loader, options.Control, options.Live}
	}
	if len(ch.Bundles) == 0 {
		return [][]string{row("-", "-")}
	}
	var rows [][]string
	for _, erts := range slices.Sorted(maps.Keys(ch.Bundles)) {
		rows = append(rows, row(erts, ch.Bundles[erts].String()))
	}
	return rows
}

func (c *command) channelShow() *cobra.Command {
	return c.read(&cobra.Command{
		Use: "show CHANNEL", Short: "Show one channel and its latest moves", Args: arguments(1, 1),
		ValidArgsFunction: c.complete(channelNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ch, err := client.Channel(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(ch, func(w io.Writer) error {
				if err := table(w, channelHeader, channelRows(ch)); err != nil || len(ch.History) == 0 {
					return err
				}
				fmt.Fprintln(w)
				var rows [][]string
				for _, m := range slices.Backward(ch.History) {
					rows = append(rows, []string{fmt.Sprint(m.Generation), timeText(m.At), m.ERTS, refText(m.From), refText(m.To)})
				}
				return table(w, "GENERATION AT ERTS FROM TO", rows)
			})
		}),
	})
}

func refText(r eboot.Ref) string {
	if r.IsZero() {
		return "-"
	}
	return r.String()
}

func (c *command) channelSet() *cobra.Command {
	var set api.ChannelSet
	cmd := &cobra.Command{
		Use:   "set CHANNEL [NAME@VERSION]",
		Short: "Point a channel to a bundle, or say how its slaves boot: they get it at their next boot",
		Args:  arguments(1, 2),

		ValidArgsFunction: c.complete(channelNames, bundleNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) (err error) {
			switch {
			case len(args) > 1:
				if set.Bundle, err = eboot.ParseRef(args[1]); err != nil {
					return err
				}
			case set.ERTS != "":
				return fmt.Errorf("--erts %s: name the bundle too, NAME@VERSION: %w", set.ERTS, eboot.ErrInvalid)
			case set.Options == eboot.ChannelOptions{}:
				return fmt.Errorf("channel set %s: nothing to set; name a bundle (NAME@VERSION), --loader, --control or --live: %w", args[0], eboot.ErrInvalid)
			}
			if err := eboot.CheckName("channel", args[0]); err != nil {
				return err
			}
			result, err := client.SetChannel(ctx, args[0], set)
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				return written(w, "channel "+args[0]+settingText(set), result)
			})
		}),
	}
	cmd.Flags().StringVar(&set.ERTS, "erts", "", "only for this ERTS version (default: each one the bundle was published for)")
	cmd.Flags().Var(choice{&set.Options.Loader, []string{eboot.LoaderEboot, eboot.LoaderStock}}, "loader",
		"eboot: boot scripts bring eboot's loader (the default of a channel); stock: they are served as published")
	cmd.Flags().Var(choice{&set.Options.Control, []string{eboot.ControlOn, eboot.ControlOff}}, "control",
		"on: slaves with eboot's loader keep their connection open; off: they close it when it is idle (the default of a channel)")
	cmd.Flags().Var(choice{&set.Options.Live, []string{eboot.LiveOn, eboot.LiveOff}}, "live",
		"on: every request is answered from the newest bundle, for development, with the stock loader; off: a boot sees one bundle (the default of a channel)")
	return c.write(cmd)
}

func (c *command) channelUndo() *cobra.Command {
	return c.write(&cobra.Command{
		Use: "undo CHANNEL", Short: "Take the latest move of a channel back; again, make it anew", Args: arguments(1, 1),
		ValidArgsFunction: c.complete(channelNames),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			if err := eboot.CheckName("channel", args[0]); err != nil {
				return err
			}
			result, err := client.UndoChannel(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				if err := written(w, "channel "+args[0]+": the latest move was taken back", result); err != nil {
					return err
				}
				ch, err := client.Channel(ctx, args[0])
				if err != nil {
					return nil // the write is done; where the channel points to now is a courtesy
				}
				if len(ch.Bundles) == 0 {
					fmt.Fprintf(c.err, "note: channel %s points to no bundle now: its slaves do not boot\n", ch.Name)
				}
				return table(w, channelHeader, channelRows(ch))
			})
		}),
	})
}

// settingText says what a channel was set to.
func settingText(set api.ChannelSet) string {
	var parts []string
	if !set.Bundle.IsZero() {
		parts = append(parts, "points to "+set.Bundle.String())
	}
	if set.Options.Loader != "" {
		parts = append(parts, "loader "+set.Options.Loader)
	}
	if set.Options.Control != "" {
		parts = append(parts, "control "+set.Options.Control)
	}
	if set.Options.Live != "" {
		parts = append(parts, "live "+set.Options.Live)
	}
	text := strings.Join(parts, ", ")
	if set.Bundle.IsZero() {
		return ": " + text
	}
	return " " + text
}

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	words []string
}

// Set takes a word.
func (c choice) Set(word string) error {
	if !slices.Contains(c.words, word) {
		return fmt.Errorf("want %s", strings.Join(c.words, " or "))
	}
	*c.value = word
	return nil
}

// String is the word that was taken.
func (c choice) String() string { return *c.value }

// Type is what the help shows for a value.
func (c choice) Type() string { return strings.Join(c.words, "|") }
