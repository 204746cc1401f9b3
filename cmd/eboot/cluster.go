package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"eboot/api"
)

func (c *command) clusterCommand() *cobra.Command {
	return group("cluster", "The servers", c.clusterStatus(), c.clusterReady())
}

func (c *command) clusterStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what a server says of itself and its Raft group", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			s, err := client.Status(ctx)
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) error {
				if err := fields(w, [][2]string{
					{"cluster", s.Cluster},
					{"server", s.Server},
					{"version", s.Version},
					{"started", timeText(s.StartedAt)},
					{"role", s.Role},
					{"leader", dash(s.Leader)},
					{"term", fmt.Sprint(s.Term)},
					{"log", fmt.Sprintf("%d written, %d applied, %d in the serving cache", s.LastIndex, s.AppliedIndex, s.CachedIndex)},
					{"generation", fmt.Sprint(s.Generation)},
					{"state", s.StateDigest.Short()},
					{"ready", yesNo(s.Readiness.Ready)},
				}...); err != nil {
					return err
				}
				for _, reason := range s.Readiness.Reasons {
					fmt.Fprintln(w, "  not ready:", reason)
				}
				for _, l := range s.Readiness.Listeners {
					fmt.Fprintf(w, "  ERTS %s on %s\n", l.ERTS, l.Address)
				}
				for _, d := range s.Readiness.Damaged {
					fmt.Fprintf(w, "  damaged %s: %s\n", d.Digest, d.Reason)
				}
				if st := s.Readiness.Storage; st != nil {
					fmt.Fprintf(w, "  %d blobs, %s; %s free\n", st.Blobs, bytesText(st.Bytes), bytesText(st.FreeBytes))
				}
				rows := make([][]string, len(s.Servers))
				for i, m := range s.Servers {
					rows[i] = []string{m.ID, m.Address, yesNo(m.Voter), yesNo(m.Leader)}
				}
				return table(w, "SERVER ADDRESS VOTER LEADER", rows)
			})
		}),
	}
}

func (c *command) clusterReady() *cobra.Command {
	return &cobra.Command{
		Use: "ready", Short: "Say whether a server can boot slaves at once (exit 1 when not)", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			r, err := client.Readiness(ctx)
			if err != nil {
				return err
			}
			err = c.print(r, func(w io.Writer) error {
				if r.Ready {
					_, err := fmt.Fprintln(w, "ready")
					return err
				}
				for _, reason := range r.Reasons {
					fmt.Fprintln(w, "not ready:", reason)
				}
				return nil
			})
			if err == nil && !r.Ready {
				return errNegative
			}
			return err
		}),
	}
}
