package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) eventsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use: "events", Short: "Show what changed and what happened to slaves, oldest first", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			if follow {
				return client.FollowEvents(ctx, c.eventLine)
			}
			events, err := client.Events(ctx)
			if err != nil {
				return err
			}
			return c.print(events, func(w io.Writer) error {
				rows := make([][]string, len(events))
				for i, e := range events {
					generation := "-"
					if e.Generation > 0 {
						generation = fmt.Sprint(e.Generation)
					}
					rows[i] = []string{timeText(e.At), generation, string(e.Kind), dash(e.By.String()), e.Text}
				}
				return table(w, "AT GENERATION KIND BY TEXT", rows)
			})
		}),
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "what happens from now on, a line each, until interrupted")
	return c.read(cmd)
}

func (c *command) eventLine(e eboot.Event) error {
	if c.json() {
		return json.NewEncoder(c.out).Encode(e)
	}
	by := ""
	if !e.By.IsZero() {
		by = "; by " + e.By.String()
	}
	_, err := fmt.Fprintf(c.out, "%s %s %s%s\n", timeText(e.At), e.Kind, e.Text, by)
	return err
}
