package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) channelCommand() *cobra.Command {
	return group("channel", "What boots", c.channelList(), c.channelShow(), c.channelSet())
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
				return table(w, "CHANNEL ERTS BUNDLE", rows)
			})
		}),
	})
}

func channelRows(ch eboot.Channel) [][]string {
	if len(ch.Bundles) == 0 {
		return [][]string{{ch.Name, "-", "-"}}
	}
	var rows [][]string
	for _, erts := range slices.Sorted(maps.Keys(ch.Bundles)) {
		rows = append(rows, []string{ch.Name, erts, ch.Bundles[erts].String()})
	}
	return rows
}

func (c *command) channelShow() *cobra.Command {
	return c.read(&cobra.Command{
		Use: "show CHANNEL", Short: "Show one channel and its latest moves", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ch, err := client.Channel(ctx, args[0])
			if err != nil {
				return err
			}
			return c.print(ch, func(w io.Writer) error {
				if err := table(w, "CHANNEL ERTS BUNDLE", channelRows(ch)); err != nil || len(ch.History) == 0 {
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
	var erts string
	cmd := &cobra.Command{
		Use: "set CHANNEL NAME@VERSION", Short: "Point a channel to a bundle: slaves get it at their next boot", Args: arguments(2, 2),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			ref, err := eboot.ParseRef(args[1])
			if err != nil {
				return err
			}
			if err := eboot.CheckName("channel", args[0]); err != nil {
				return err
			}
			result, err := client.SetChannel(ctx, args[0], api.ChannelSet{Bundle: ref, ERTS: erts})
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				return written(w, fmt.Sprintf("channel %s points to %s", args[0], ref), result)
			})
		}),
	}
	cmd.Flags().StringVar(&erts, "erts", "", "only for this ERTS version (default: each one the bundle was published for)")
	return c.write(cmd)
}
