package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"eboot/api"
	"eboot/fsm"
	"eboot/internal/agent"
	"eboot/internal/fsutil"
)

func (c *command) snapshotCommand() *cobra.Command {
	return group("snapshot", "The replicated state in a file: whitelist, bundle index and channels, without blobs",
		c.snapshotSave(), c.snapshotInspect(), c.snapshotRestore())
}

func (c *command) snapshotSave() *cobra.Command {
	return &cobra.Command{
		Use: "save FILE", Short: "Save the state of the cluster", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			var info api.SnapshotInfo
			err := fsutil.WriteAtomic(args[0], 0o600, func(w io.Writer) (err error) {
				info, err = client.SaveSnapshot(ctx, w)
				return err
			})
			if err != nil {
				return err
			}
			return c.print(info, func(w io.Writer) error {
				if info.Stale {
					fmt.Fprintln(c.err, "warning: this server finds no leader, or raft does not run on it; it saved what it serves, which may not be the newest")
				}
				return snapshotText(w, info)
			})
		}),
	}
}

func snapshotText(w io.Writer, i api.SnapshotInfo) error {
	return fields(w, [][2]string{
		{"cluster", dash(i.Cluster)},
		{"index", fmt.Sprint(i.Index)},
		{"generation", fmt.Sprint(i.Generation)},
		{"state", i.Digest.Short()},
		{"whitelist entries", fmt.Sprint(i.Entries)},
		{"bundles", fmt.Sprint(i.Bundles)},
		{"channels", fmt.Sprint(i.Channels)},
	}...)
}

func (c *command) snapshotInspect() *cobra.Command {
	return &cobra.Command{
		Use: "inspect FILE", Short: "Check a snapshot and say what is in it; needs no server", Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			state, err := fsm.ReadState(f)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", args[0], err)
			}
			info := agent.DescribeSnapshot(state)
			return c.print(info, func(w io.Writer) error { return snapshotText(w, info) })
		},
	}
}

func (c *command) snapshotRestore() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Replace the state of a new cluster; bundles that it names must be published again to bring their blobs", Args: arguments(1, 1),
		RunE: c.withClient(func(ctx context.Context, client *api.Client, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := client.RestoreSnapshot(ctx, f, force)
			if err != nil {
				return err
			}
			return c.print(info, func(w io.Writer) error {
				if err := snapshotText(w, info); err != nil {
					return err
				}
				_, err := fmt.Fprintln(w, "restored; `eboot cluster ready` names the bundles whose blobs are missing")
				return err
			})
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "although the cluster is in use")
	return cmd
}
