package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
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
				header := "BEGAN SLAVE ERTS BUNDLE CHANNEL LOADER PHASE LOADED-IN REQUESTS BYTES"
				failures := slices.ContainsFunc(boots, func(b eboot.Boot) bool { return b.Failure != "" })
				if failures {
					header += " FAILURE"
				}
				rows := make([][]string, len(boots))
				for i, b := range boots {
					rows[i] = []string{timeText(b.Began), b.Slave.String(), b.ERTS, b.Bundle.String(), b.Channel, b.Loader, phaseText(b),
						durationText(b), fmt.Sprint(b.Requests), bytesText(b.Bytes)}
					if failures {
						rows[i] = append(rows[i], dash(b.Failure))
					}
				}
				return table(w, header, rows)
			})
		}),
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on as boots begin and change phase, until interrupted")
	return cmd
}

// phaseText is how far a boot came. What a slave with eboot's loader reported last
// says more than that it is loading.
func phaseText(b eboot.Boot) string {
	if b.Cured == nil || len(b.Cured.Phases) == 0 || !b.Loaded.IsZero() {
		return string(b.Phase)
	}
	reached := b.Cured.Phases[len(b.Cured.Phases)-1].Phase
	if b.Phase == eboot.BootLoading {
		return reached
	}
	return string(b.Phase) + " after " + reached
}

// curedText is what only eboot's loader tells: nothing for a stock one.
func curedText(b eboot.Boot) string {
	if b.Cured == nil {
		return ""
	}
	return fmt.Sprintf(", mode %s, answered on the slave %d, switches %d", b.Cured.Mode, b.Cured.Local, b.Cured.Switches)
}

// durationText is the time from the boot script to the end of the boot, which for a
// stock slave is the last request before the first quiet second; while a boot loads, to
// the latest request.
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
		failure := ""
		if b.Failure != "" {
			failure = ": " + b.Failure
		}
		_, err := fmt.Fprintf(c.out, "%s %s %s %s %s: loader %s, %d requests, %s in %s%s%s\n", timeText(b.Latest), b.Slave, phaseText(b), b.Bundle, b.ERTS,
			b.Loader, b.Requests, bytesText(b.Bytes), durationText(b), curedText(b), failure)
		return err
	})
}
