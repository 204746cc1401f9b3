package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) bootsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "boots [ADDR]", Short: "Show who booted what, how far and how fast", Args: arguments(0, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			var slave netip.Addr
			if len(args) > 0 {
				var err error
				if slave, err = eboot.ParseAddr(args[0]); err != nil {
					return err
				}
			}
			if follow {
				return c.followBoots(ctx, client, slave)
			}
			boots, err := client.Boots(ctx, slave)
			if err != nil {
				return err
			}
			return c.print(boots, func(w io.Writer) error {
				rows := make([][]string, len(boots))
				for i, b := range boots {
					rows[i] = []string{timeText(b.Began), b.Slave.String(), b.ERTS, b.Bundle.String(), b.Channel, string(b.Phase),
						durationText(b), fmt.Sprint(b.Requests), bytesText(b.Bytes)}
				}
				return table(w, "BEGAN SLAVE ERTS BUNDLE CHANNEL PHASE LOADED-IN REQUESTS BYTES", rows)
			})
		}),
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on as boots begin and change phase, until interrupted")
	return cmd
}

// durationText is the time from the boot script to the last request before the
// first quiet second; while a boot loads, to the latest request.
func durationText(b eboot.Boot) string {
	end := b.Loaded
	if end.IsZero() {
		end = b.Latest
	}
	return end.Sub(b.Began).Round(time.Millisecond).String()
}

func (c *command) followBoots(ctx context.Context, client *api.Client, slave netip.Addr) error {
	return client.FollowBoots(ctx, func(b eboot.Boot) error {
		if slave.IsValid() && b.Slave != slave {
			return nil
		}
		if c.json() {
			return json.NewEncoder(c.out).Encode(b)
		}
		_, err := fmt.Fprintf(c.out, "%s %s %s %s %s: %d requests, %s in %s\n", timeText(b.Latest), b.Slave, b.Phase, b.Bundle, b.ERTS, b.Requests, bytesText(b.Bytes), durationText(b))
		return err
	})
}
