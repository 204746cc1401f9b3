package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"eboot"
	"eboot/api"
)

func (c *command) clusterCommand() *cobra.Command {
	return group("cluster", "The servers", c.clusterInit(), c.clusterMembers(), c.clusterStatus(), c.clusterReady(), c.clusterDrain(), c.clusterUndrain(),
		c.clusterTransfer(), c.clusterRemove(), c.clusterRecover(), c.clusterReset())
}

func (c *command) clusterInit() *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Found a cluster of one server, the one at the first address; others with its seeds join it", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			founded, err := client.InitCluster(ctx)
			if err != nil {
				return err
			}
			return c.print(founded, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "founded cluster %s; its first server is %s\n", founded.Cluster, founded.Server)
				return err
			})
		}),
	}
}

func (c *command) clusterMembers() *cobra.Command {
	return &cobra.Command{
		Use: "members", Short: "Show every server: role, health, lag, bundles held, drained or not", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			m, err := client.Members(ctx)
			if err != nil {
				return err
			}
			return c.print(m, func(w io.Writer) error { return membersText(w, m) })
		}),
	}
}

func membersText(w io.Writer, m eboot.Membership) error {
	if err := fields(w, [][2]string{
		{"cluster", m.Cluster},
		{"leader", dash(m.Leader)},
		{"priority", m.Priority},
		{"failures", toleranceText(m)},
	}...); err != nil {
		return err
	}
	for _, text := range m.Warnings {
		fmt.Fprintln(w, "warning:", text)
	}
	rows := make([][]string, len(m.Members))
	for i, d := range m.Members {
		boots := make([]string, len(d.BootAddress))
		for j, a := range d.BootAddress {
			boots[j] = a.String()
		}
		lag, bundles, ready := "-", "-", "-" // it has not said
		if d.AppliedIndex > 0 {
			lag, bundles, ready = fmt.Sprint(d.Lag), fmt.Sprintf("%d/%d", d.Bundles, m.Bundles), yesNo(d.Ready)
		}
		rows[i] = []string{d.ID, d.Address, d.Role, string(d.Health), lag, bundles, ready, yesNo(d.Drained), expiryText(d.CertificateExpires), dash(strings.Join(boots, ",")), dash(d.Version)}
	}
	if err := table(w, "SERVER ADDRESS ROLE HEALTH LAG BUNDLES READY DRAINED CERT-EXPIRES BOOTS-ON VERSION", rows); err != nil {
		return err
	}
	for _, d := range m.Members {
		if d.Problem != "" {
			fmt.Fprintf(w, "%s: %s\n", d.ID, d.Problem)
		}
	}
	return nil
}

// expiryText is the day on which a certificate expires.
func expiryText(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.UTC().Format(time.DateOnly)
}

// toleranceText says what may still happen before nothing can be written.
func toleranceText(m eboot.Membership) string {
	switch {
	case m.Leader == "":
		return "there is no leader: nothing can be written"
	case m.FailureTolerance == 0:
		return "no server may fail, or nothing can be written"
	case m.FailureTolerance == 1:
		return "1 server may fail before nothing can be written"
	}
	return fmt.Sprintf("%d servers may fail before nothing can be written", m.FailureTolerance)
}

func (c *command) clusterStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show what a server says of itself and its Raft group", Args: arguments(0, 0),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, _ []string) error {
			s, err := client.Status(ctx)
			if err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) error { return statusText(w, s) })
		}),
	}
}

func statusText(w io.Writer, s eboot.ClusterStatus) error {
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
	for _, text := range s.Warnings {
		fmt.Fprintln(w, "  warning:", text)
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
	return serversText(w, s.Servers)
}

func serversText(w io.Writer, servers []eboot.Member) error {
	rows := make([][]string, len(servers))
	for i, m := range servers {
		rows[i] = []string{m.ID, m.Address, yesNo(m.Voter), yesNo(m.Leader)}
	}
	return table(w, "SERVER ADDRESS VOTER LEADER", rows)
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

func (c *command) clusterDrain() *cobra.Command {
	return c.drain("drain", "Have slaves boot from other servers, until undrained", true)
}

func (c *command) clusterUndrain() *cobra.Command {
	return c.drain("undrain", "Have slaves boot from a server again", false)
}

func (c *command) drain(verb, short string, drained bool) *cobra.Command {
	return c.write(&cobra.Command{
		Use: verb + " [SERVER]", Short: short + " (default: the server at the first address)", Args: arguments(0, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			id, name := api.Self, "the server at "+c.addresses()[0]
			if len(args) > 0 && args[0] != api.Self {
				id, name = args[0], args[0]
			}
			result, err := client.DrainServer(ctx, id, drained)
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error { return written(w, verb+"ed "+name, result) })
		}),
	})
}

func (c *command) clusterTransfer() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [SERVER]", Short: "Have another server lead (default: whichever can)", Args: arguments(0, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			result, err := client.TransferLeadership(ctx, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, "leader is", dash(result.Leader))
				return err
			})
		}),
	}
}

func (c *command) clusterRemove() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use: "remove SERVER", Short: "Take a server out of the cluster for good; one that is merely down needs no removal", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			before, err := client.Members(ctx)
			if err != nil {
				return err
			}
			result, err := client.RemoveServer(ctx, args[0], replace)
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) error {
				if err := written(w, "removed "+args[0], result); err != nil {
					return err
				}
				fmt.Fprintln(w, "before:", toleranceText(before))
				now, err := client.Members(ctx)
				if err != nil {
					c.warn("what the cluster tolerates now is not known: " + err.Error())
					return nil
				}
				_, err = fmt.Fprintln(w, "now:", toleranceText(now))
				return err
			})
		}),
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "and take in the server that waits at its address")
	return c.write(cmd)
}
