#!/usr/bin/env escript
%%! +fnu
%% Reads frames that the Go decoder accepted, each with what Go made of it, and
%% says what Erlang makes of it. Input, repeated: 32-bit length and frame, 32-bit
%% length and the frame that Go wrote of the same term. Output: a line a frame,
%% "bad" when binary_to_term refuses, "differs" when the two terms differ, else
%% "name " and the name in hexadecimal, or "no name", for the second element of
%% a pair.
main([File]) ->
    {ok, Data} = file:read_file(File),
    judge(Data).

judge(<<N:32, Frame:N/binary, M:32, Again:M/binary, Rest/binary>>) ->
    io:put_chars([verdict(Frame, Again), $\n]),
    judge(Rest);
judge(<<>>) ->
    ok.

verdict(Frame, Again) ->
    try binary_to_term(Frame) of
        Term ->
            case binary_to_term(Again) of
                Term -> name(Term);
                _ -> "differs"
            end
    catch
        error:badarg -> "bad"
    end.

%% prim_file:internal_name2native/1 is what decides on a name in prim_file. It
%% ends the name with a zero, and takes binaries and atoms too, which
%% erl_prim_loader:archive_split/3 has refused before.
name({_, Name}) when is_list(Name) ->
    try prim_file:internal_name2native(Name) of
        Native -> ["name ", [io_lib:format("~2.16.0b", [B]) || <<B>> <= Native]]
    catch
        error:badarg -> "no name"
    end;
name(_) ->
    "no name".
