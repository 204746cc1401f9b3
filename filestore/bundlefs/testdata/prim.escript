#!/usr/bin/env escript
%%! +fnu
%% Answers names as erl_boot_server does: through the same functions of
%% erl_prim_loader. Names come as hexadecimal UTF-8, one a line; see otp_test.go.
main([Dir, Names]) ->
    ok = file:set_cwd(Dir),
    {ok, _} = zip:create("lib/x.ez", ["x-1", "top.txt"], [{uncompress, [".beam"]}]),
    {ok, _} = zip:create("lib/y.ez", ["x-1/ebin/m.beam"]),
    {ok, Lines} = file:read_file(Names),
    [answer(Line) || Line <- binary:split(Lines, <<"\n">>, [global, trim])].

answer(Line) ->
    Name = unicode:characters_to_list(binary:decode_hex(Line)),
    PS = erl_prim_loader:prim_init(),
    {Get, _} = erl_prim_loader:prim_get_file(PS, Name),
    {List, _} = erl_prim_loader:prim_list_dir(PS, Name),
    {Stat, _} = erl_prim_loader:prim_read_file_info(PS, Name, true),
    {Lstat, _} = erl_prim_loader:prim_read_file_info(PS, Name, false),
    io:format("~s ~s ~s ~s~n", [content(Get), names(List), info(Stat), info(Lstat)]).

content({ok, Data}) -> ["+", binary:encode_hex(Data)];
content(Error) -> failure(Error).

names({ok, Names}) -> ["+", binary:encode_hex(unicode:characters_to_binary(lists:join(" ", lists:sort(Names))))];
names(Error) -> failure(Error).

info({ok, FI}) ->
    %% The size of a directory on disk is that of its blocks; in an archive it is that of the archive.
    io_lib:format("+~s/~b", [element(3, FI), element(2, FI)]);
info(Error) -> failure(Error).

failure({error, Reason}) when is_atom(Reason) -> atom_to_list(Reason);
failure({error, _}) -> "other".
